"""A gRPC server for the tests, without generated code: methods of service `test.Echo` on bytes."""
import itertools
import sys
import threading
from concurrent import futures

import grpc

cancelled = threading.Event()


def unary(request, context):
    context.send_initial_metadata((("x-initial", "first"),))
    context.set_trailing_metadata((("x-trailing", "last"),))
    return b"echo " + request


def fail(request, context):
    # Nothing was sent yet: the answer is one HEADERS frame, a trailers-only response.
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not now: 100 % sure")


def client_stream(requests, context):
    return b"+".join(requests)


def server_stream(request, context):
    for number in range(int(request)):
        yield b"%d" % number


def both(requests, context):
    for request in requests:
        yield b"echo " + request


def deadline(request, context):
    return b"%.3f" % context.time_remaining()


def wait(request, context):
    """Sends one message, then waits until the caller goes away."""
    context.add_callback(cancelled.set)
    yield b"started"
    while context.is_active():
        cancelled.wait(0.05)


def was_cancelled(request, context):
    return b"yes" if cancelled.wait(15) else b"no"


calls = itertools.count(1)


def flaky(request, context):
    """Works for every third call."""
    number = next(calls)
    if number % 3:
        context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
    return b"call %d" % number


def flaky_client_stream(requests, context):
    """The same, after all of the request."""
    count = sum(1 for _ in requests)
    return flaky(None, context) + b" of %d" % count


class Handlers(grpc.GenericRpcHandler):
    methods = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Flaky": grpc.unary_unary_rpc_method_handler(flaky),
        "FlakyClientStream": grpc.stream_unary_rpc_method_handler(flaky_client_stream),
        "Fail": grpc.unary_unary_rpc_method_handler(fail),
        "ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
        "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
        "Both": grpc.stream_stream_rpc_method_handler(both),
        "Deadline": grpc.unary_unary_rpc_method_handler(deadline),
        "Wait": grpc.unary_stream_rpc_method_handler(wait),
        "WasCancelled": grpc.unary_unary_rpc_method_handler(was_cancelled),
    }

    def service(self, call):
        return self.methods.get(call.method.rsplit("/", 1)[1])


server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
server.add_generic_rpc_handlers((Handlers(),))
server.add_insecure_port(sys.argv[1])
server.start()
print("serving", flush=True)
server.wait_for_termination()
