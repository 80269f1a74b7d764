"""An ordinary gRPC client of the CA, which verifies the name that it dials: prints how a call ends as JSON."""
import json
import sys

import grpc

address, name, bundle = sys.argv[1:]
roots = grpc.ssl_channel_credentials(open(bundle, "rb").read())
channel = grpc.secure_channel(
    address, roots, options=[("grpc.ssl_target_name_override", name), ("grpc.enable_http_proxy", 0)]
)
create = channel.unary_unary("/istio.v1.auth.IstioCertificateService/CreateCertificate")
try:
    create(b"", timeout=10)
    print(json.dumps({"code": "OK"}))
except grpc.RpcError as error:
    print(json.dumps({"code": error.code().name, "details": error.details()}))
