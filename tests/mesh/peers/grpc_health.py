"""A server of gRPC's health protocol for the tests: the state of `shop` is the number in a file."""
import pathlib
import sys
from concurrent import futures

import grpc


def check(request, context):
    # A message of one field: the name of the service.
    if request != b"\x0a\x04shop":
        context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
    return bytes([8, int(pathlib.Path(sys.argv[2]).read_text())])


class Health(grpc.GenericRpcHandler):
    def service(self, call):
        if call.method == "/grpc.health.v1.Health/Check":
            return grpc.unary_unary_rpc_method_handler(check)


server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
server.add_generic_rpc_handlers((Health(),))
server.add_insecure_port(sys.argv[1])
server.start()
print("serving", flush=True)
server.wait_for_termination()
