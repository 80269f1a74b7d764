//! DNS messages over a stream: two octets of length, then the message (RFC 7858 3.3).

use bytes::{Buf, BytesMut};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};

use super::super::outcome::Miss;

/// Encodes a question with its length before it.
pub(super) fn write_question(id: u16, name: Name, kind: RecordType) -> Result<Vec<u8>, String> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, kind));
    message.set_edns(Edns::new());
    let bytes = message.to_vec().map_err(|error| error.to_string())?;
    let length = u16::try_from(bytes.len()).map_err(|error| error.to_string())?;
    let mut framed = Vec::with_capacity(2 + bytes.len());
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(&bytes);
    Ok(framed)
}

/// Takes the next whole message out of what was received; `None`: there is none yet.
pub(super) fn take_message(received: &mut BytesMut) -> Result<Option<Message>, String> {
    let Some((length, rest)) = received.split_first_chunk::<2>() else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes(*length));
    if rest.len() < length {
        received.reserve(2 + length - received.len());
        return Ok(None);
    }
    received.advance(2);
    let message = received.split_to(length);
    Message::from_vec(&message).map(Some).map_err(|error| format!("not a DNS message: {error}"))
}

/// Records of the type and at the name that were asked for.
#[derive(Debug)]
pub(super) struct Answer {
    pub data: Vec<RData>,
    pub ttl_seconds: u32,
}

/// Reads the answer to a question. A name that does not exist, or has no records of this type, is a definite "no"; any
/// other code is a failure. An answer without authority is what the server heard from ordinary DNS, to which it may
/// forward: discovery itself knows nothing of the name, whatever the answer says.
pub(super) fn read_answer(message: Message, name: &Name, kind: RecordType) -> Result<Answer, Miss> {
    let failed =
        |what: String| Miss::Failed(format!("the mesh's discovery answered {kind} of {name} {what}"));
    let question = message.queries.first();
    if !question.is_some_and(|query| query.name() == name && query.query_type() == kind) {
        return Err(failed("with another question's answer".to_owned()));
    }
    if message.metadata.truncation {
        return Err(failed("in part only".to_owned()));
    }
    let negative_ttl = message.authorities.iter().find_map(|record| match &record.data {
        RData::SOA(soa) => Some(soa.minimum.min(record.ttl)),
        _ => None,
    });
    match message.metadata.response_code {
        ResponseCode::NoError => {}
        ResponseCode::NXDomain => return Err(Miss::absent(negative_ttl)),
        code => return Err(failed(format!("with the code \"{code}\""))),
    }
    if !message.metadata.authoritative {
        return Err(Miss::absent(negative_ttl));
    }
    let mut answer = Answer { data: Vec::new(), ttl_seconds: u32::MAX };
    for record in message.answers {
        if record.name == *name && record.data.record_type() == kind {
            answer.ttl_seconds = answer.ttl_seconds.min(record.ttl);
            answer.data.push(record.data);
        }
    }
    if answer.data.is_empty() {
        return Err(Miss::absent(negative_ttl));
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hickory_proto::rr::Record;
    use hickory_proto::rr::rdata::{SOA, TXT};

    use super::*;

    fn name(text: &str) -> Name {
        let mut name = Name::from_ascii(text).unwrap();
        name.set_fqdn(true);
        name
    }

    fn response(asked: &str, code: ResponseCode) -> Message {
        let mut message = Message::response(7, OpCode::Query);
        message.metadata.response_code = code;
        message.metadata.authoritative = true;
        message.add_query(Query::query(name(asked), RecordType::TXT));
        message
    }

    fn txt(owner: &str, ttl: u32, text: &str) -> Record {
        Record::from_rdata(name(owner), ttl, RData::TXT(TXT::new(vec![text.to_owned()])))
    }

    #[test]
    fn a_question_comes_out_of_the_stream_as_it_went_in_however_it_is_cut() {
        let framed = write_question(9, name("a.example"), RecordType::TXT).unwrap();
        let mut stream = framed.clone();
        stream.extend_from_slice(&framed);
        let mut received = BytesMut::new();
        let mut messages = Vec::new();
        for byte in stream {
            received.extend_from_slice(&[byte]);
            messages.extend(take_message(&mut received).unwrap());
        }
        assert_eq!(messages.len(), 2);
        assert_eq!(messages[1].metadata.id, 9);
        assert_eq!(messages[1].queries[0].name(), &name("a.example"));
    }

    #[test]
    fn what_is_no_message_ends_the_stream() {
        let mut received = BytesMut::from(&[0, 3, 1, 2, 3][..]);
        assert!(take_message(&mut received).is_err());
    }

    #[test]
    fn only_a_definite_no_is_one() {
        let read = |message| read_answer(message, &name("a.example"), RecordType::TXT);
        let absent = |seconds| Miss::Absent { valid_for: Duration::from_secs(seconds) };

        let gone = response("A.example", ResponseCode::NXDomain);
        assert_eq!(read(gone).unwrap_err(), absent(5));

        let mut gone = response("a.example", ResponseCode::NXDomain);
        let soa = SOA::new(name("ns.example"), name("root.example"), 1, 1, 1, 1, 3);
        gone.add_authority(Record::from_rdata(name("example"), 100, RData::SOA(soa)));
        assert_eq!(read(gone).unwrap_err(), absent(3));

        let empty = response("a.example", ResponseCode::NoError);
        assert_eq!(read(empty).unwrap_err(), absent(5));

        for code in [ResponseCode::ServFail, ResponseCode::Refused, ResponseCode::FormErr] {
            let failed = read(response("a.example", code)).unwrap_err();
            assert!(matches!(failed, Miss::Failed(_)), "{code}");
        }
        let mut truncated = response("a.example", ResponseCode::NoError);
        truncated.metadata.truncation = true;
        assert!(matches!(read(truncated).unwrap_err(), Miss::Failed(_)));
        let other = response("b.example", ResponseCode::NXDomain);
        assert!(matches!(read(other).unwrap_err(), Miss::Failed(_)));
    }

    #[test]
    fn hearsay_is_no_answer() {
        let mut message = response("a.example", ResponseCode::NoError);
        message.metadata.authoritative = false;
        message.add_answer(txt("a.example", 9, "forwarded"));
        let read = read_answer(message, &name("a.example"), RecordType::TXT);
        assert!(matches!(read.unwrap_err(), Miss::Absent { .. }));
    }

    #[test]
    fn records_of_other_names_do_not_count() {
        let mut message = response("a.example", ResponseCode::NoError);
        message.add_answer(txt("a.example", 9, "mine"));
        message.add_answer(txt("A.EXAMPLE", 7, "mine too"));
        message.add_answer(txt("b.example", 1, "foreign"));
        let answer = read_answer(message, &name("a.example"), RecordType::TXT).unwrap();
        assert_eq!((answer.data.len(), answer.ttl_seconds), (2, 7));
    }
}
