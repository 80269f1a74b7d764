"""A gRPC client for the tests: makes one kind of call and prints what came of it as JSON."""
import json
import queue
import sys

import grpc

address, kind = sys.argv[1:3]
# A proxy in between must not see reconnects that hide its failures.
channel = grpc.insecure_channel(address, options=[("grpc.enable_retries", 0), ("grpc.enable_http_proxy", 0)])
name = lambda method: "/test.Echo/" + method
TIMEOUT = 20


def unary():
    answer, call = channel.unary_unary(name("Unary")).with_call(b"hello", timeout=TIMEOUT)
    return {
        "answer": answer.decode(),
        "initial": dict(call.initial_metadata()).get("x-initial"),
        "trailing": dict(call.trailing_metadata()).get("x-trailing"),
    }


def large():
    sent = bytes(range(256)) * 8192
    return {"same": channel.unary_unary(name("Unary"))(sent, timeout=TIMEOUT) == b"echo " + sent}


def fail():
    return {"answer": channel.unary_unary(name("Fail"))(b"", timeout=TIMEOUT).decode()}


def flaky():
    return {"answer": channel.unary_unary(name("Flaky"))(b"", timeout=TIMEOUT).decode()}


def unimplemented():
    return {"answer": channel.unary_unary(name("Nothing"))(b"", timeout=TIMEOUT).decode()}


def client_stream():
    parts = iter([b"a", b"b", b"c"])
    return {"answer": channel.stream_unary(name("ClientStream"))(parts, timeout=TIMEOUT).decode()}


def flaky_client_stream():
    parts = (b"%d" % (number % 10) for number in range(3000))
    return {"answer": channel.stream_unary(name("FlakyClientStream"))(parts, timeout=TIMEOUT).decode()}


def server_stream():
    return {"answers": [int(part) for part in channel.unary_stream(name("ServerStream"))(b"100", timeout=TIMEOUT)]}


def both():
    # Each message is sent only after the answer to the one before it: nothing on the way may wait
    # for more.
    questions = queue.Queue()
    answers = channel.stream_stream(name("Both"))(iter(questions.get, None), timeout=TIMEOUT)
    got = []
    for number in range(20):
        questions.put(b"%d" % number)
        got.append(next(answers).decode())
    questions.put(None)
    return {"answers": got, "ended": next(answers, None) is None}


def deadline():
    return {"remaining": float(channel.unary_unary(name("Deadline"))(b"", timeout=7))}


def exceeded():
    for _ in channel.unary_stream(name("Wait"))(b"", timeout=0.5):
        pass
    return {}


def cancel():
    call = channel.unary_stream(name("Wait"))(b"", timeout=TIMEOUT)
    started = next(call).decode()
    call.cancel()
    known = channel.unary_unary(name("WasCancelled"))(b"", timeout=TIMEOUT).decode()
    return {"started": started, "known": known}


try:
    result = globals()[kind]()
except grpc.RpcError as error:
    result = {"code": error.code().name, "details": error.details()}
print(json.dumps(result))
