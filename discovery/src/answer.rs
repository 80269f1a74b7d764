//! From the bytes of a question to the bytes of its answer; knows nothing of sockets.

use std::net::IpAddr;

use hickory_proto::op::{
    Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode, emit_message_parts,
};
use hickory_proto::rr::{DNSClass, LowerName, Record, RecordType};
use hickory_proto::serialize::binary::BinEncoder;

use crate::index::{Index, Node, Place};

/// The header of a message (RFC 1035 4.1.1).
pub(crate) const HEADER: usize = 12;
/// What fits into a datagram that no network on the way cuts into fragments (DNS flag day 2020). Spoofed fragments are a
/// way to poison caches, and large answers make a server worth abusing against others.
const MOST_OVER_UDP: u16 = 1232;
/// What a client without EDNS takes over UDP (RFC 1035 2.3.4).
const MOST_WITHOUT_EDNS: u16 = 512;
/// The fewest bytes a record takes, with its owner's name as a pointer.
const LEAST_RECORD: usize = 12;

/// What carries the messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carrier {
    Udp,
    /// TCP, with or without TLS.
    Stream,
}

/// What to do about a question.
#[derive(Debug)]
pub(crate) enum Reply {
    Answer(Vec<u8>),
    /// It is about a name that others know.
    Forward,
    /// It is no question at all; an answer could only start a loop.
    Silence,
}

/// Who asks, and by which way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asker {
    pub(crate) address: IpAddr,
    pub(crate) carrier: Carrier,
    /// Whether questions about other names can be passed on.
    pub(crate) forwards: bool,
}

/// Answers one message. Without an index, nothing is known yet.
pub(crate) fn answer(index: Option<&Index>, bytes: &[u8], asker: Asker) -> Reply {
    let Some(header) = Head::read(bytes).filter(|head| !head.is_response()) else {
        return Reply::Silence;
    };
    if header.op_code() != OpCode::Query {
        return header.refuse(ResponseCode::NotImp);
    }
    let Ok(mut question) = Message::from_vec(bytes) else {
        return header.refuse(ResponseCode::FormErr);
    };
    let (Some(query), true) = (question.queries.pop(), question.queries.is_empty()) else {
        return header.refuse(ResponseCode::FormErr);
    };
    let mut draft = Draft::new(&question.metadata, query, question.edns.as_ref(), asker);
    if question.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return draft.code(ResponseCode::BADVERS);
    }
    let kind = draft.query.query_type();
    if !matches!(draft.query.query_class(), DNSClass::IN | DNSClass::ANY)
        || matches!(kind, RecordType::AXFR | RecordType::IXFR)
    {
        return draft.code(ResponseCode::Refused);
    }
    let Some(index) = index else {
        return draft.code(ResponseCode::ServFail);
    };
    let name = LowerName::new(draft.query.name());
    match index.find(&name) {
        Place::Known(node) if node.is_reverse() && kind != RecordType::TXT => elsewhere(draft, asker),
        Place::Known(node) => known(draft, node, index, asker),
        Place::Absent => {
            draft.metadata.authoritative = true;
            draft.metadata.response_code = ResponseCode::NXDomain;
            draft.authorities.push(&index.start_of_authority);
            draft.send()
        }
        // That no workload of the mesh has this address is for us to say; whether it has an ordinary name is not, so the
        // name is not said to be absent (caches would take that for all types).
        Place::ForeignAddress if kind == RecordType::TXT => {
            let mut authority = index.start_of_authority.clone();
            authority.name = draft.query.name().clone();
            draft.metadata.authoritative = true;
            draft.authorities.push(&authority);
            draft.send()
        }
        Place::ForeignAddress | Place::Elsewhere => elsewhere(draft, asker),
    }
}

fn elsewhere(mut draft: Draft<'_>, asker: Asker) -> Reply {
    if asker.forwards { Reply::Forward } else { draft.code(ResponseCode::Refused) }
}

fn known<'a>(mut draft: Draft<'a>, node: &'a Node, index: &'a Index, asker: Asker) -> Reply {
    draft.metadata.authoritative = true;
    let set = match draft.query.query_type() {
        RecordType::ANY => node.any_set(),
        kind => node.set(kind),
    };
    match set {
        Some(set) => {
            let selected = set.select(asker.address, draft.metadata.id);
            draft.answers = selected.answers;
            draft.additionals = selected.along;
        }
        None => draft.authorities.push(&index.start_of_authority),
    }
    draft.send()
}

/// An answer that says only that there is none, for a question that stays unanswered for want of something else.
pub(crate) fn failure(question: &[u8]) -> Option<Vec<u8>> {
    match Head::read(question)?.refuse(ResponseCode::ServFail) {
        Reply::Answer(bytes) => Some(bytes),
        Reply::Forward | Reply::Silence => None,
    }
}

/// What can be read of a message even when the rest makes no sense.
struct Head<'a>(&'a [u8; HEADER]);

impl<'a> Head<'a> {
    fn read(bytes: &'a [u8]) -> Option<Self> {
        bytes.first_chunk().map(Self)
    }

    fn is_response(&self) -> bool {
        self.0[2] & 0x80 != 0
    }

    fn op_code(&self) -> OpCode {
        OpCode::from_u8((self.0[2] >> 3) & 0x0f)
    }

    fn refuse(&self, code: ResponseCode) -> Reply {
        let id = u16::from_be_bytes([self.0[0], self.0[1]]);
        Reply::from(Message::error_msg(id, self.op_code(), code).to_vec().ok())
    }
}

impl From<Option<Vec<u8>>> for Reply {
    fn from(encoded: Option<Vec<u8>>) -> Self {
        encoded.map_or(Self::Silence, Self::Answer)
    }
}

/// An answer in the making; borrows its records.
struct Draft<'a> {
    metadata: Metadata,
    query: Query,
    answers: Vec<&'a Record>,
    authorities: Vec<&'a Record>,
    additionals: Vec<&'a Record>,
    edns: Option<Edns>,
    most: u16,
}

impl<'a> Draft<'a> {
    fn new(asked: &Metadata, query: Query, edns: Option<&Edns>, asker: Asker) -> Self {
        let mut metadata = Metadata::new(asked.id, MessageType::Response, OpCode::Query);
        metadata.recursion_desired = asked.recursion_desired;
        metadata.recursion_available = asker.forwards;
        let most = match (asker.carrier, edns) {
            (Carrier::Stream, _) => u16::MAX,
            (Carrier::Udp, None) => MOST_WITHOUT_EDNS,
            (Carrier::Udp, Some(edns)) => edns.max_payload().clamp(MOST_WITHOUT_EDNS, MOST_OVER_UDP),
        };
        let edns = edns.map(|_| {
            let mut ours = Edns::new();
            ours.set_max_payload(MOST_OVER_UDP);
            ours
        });
        Self {
            metadata,
            query,
            answers: Vec::new(),
            authorities: Vec::new(),
            additionals: Vec::new(),
            edns,
            most,
        }
    }

    fn code(&mut self, code: ResponseCode) -> Reply {
        self.metadata.response_code = code;
        self.send()
    }

    /// The answer as it fits: whole, without what merely comes along, or marked as truncated and empty (half an answer
    /// would be taken for all of it by clients that do not look at the mark).
    fn send(&mut self) -> Reply {
        let most = usize::from(self.most);
        let fits = |bytes: &Vec<u8>| bytes.len() <= most;
        let records = self.answers.len() + self.authorities.len();
        if (records + self.additionals.len()) * LEAST_RECORD <= most
            && let Some(whole) = self.encode().filter(fits)
        {
            return Reply::Answer(whole);
        }
        self.additionals.clear();
        if records * LEAST_RECORD <= most
            && let Some(without_additionals) = self.encode().filter(fits)
        {
            return Reply::Answer(without_additionals);
        }
        self.metadata.truncation = true;
        self.answers.clear();
        self.authorities.clear();
        Reply::from(self.encode())
    }

    fn encode(&self) -> Option<Vec<u8>> {
        let mut buffer = Vec::with_capacity(usize::from(MOST_WITHOUT_EDNS));
        let encoded = emit_message_parts(
            &self.metadata,
            &mut std::iter::once(&self.query),
            &mut self.answers.iter().copied(),
            &mut self.authorities.iter().copied(),
            &mut self.additionals.iter().copied(),
            self.edns.as_ref(),
            None,
            &mut BinEncoder::new(&mut buffer),
        );
        match encoded {
            Ok(_) => Some(buffer),
            Err(error) => {
                tracing::error!(name = %self.query.name(), %error, "an answer could not be written");
                None
            }
        }
    }
}
