"""A server for the tests that can be killed and stopped: answers each request with its name after some milliseconds."""
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

address, name, delay = sys.argv[1:4]
host, port = address.rsplit(":", 1)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body in one segment.
    wbufsize = -1

    def do_GET(self):
        time.sleep(float(delay) / 1000)
        self.send_response(200)
        self.send_header("Content-Length", str(len(name)))
        self.end_headers()
        self.wfile.write(name.encode())

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 128


server = Server((host, int(port)), Handler)
print("serving", flush=True)
server.serve_forever()
