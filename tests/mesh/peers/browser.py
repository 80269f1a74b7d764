"""A headless Chromium, driven over a pipe by the DevTools protocol: no port, no driver program, the standard library."""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
import urllib.parse

PATIENCE = 30
ARGUMENTS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage",
    "--disable-component-update", "--disable-sync", "--no-first-run", "--no-default-browser-check", "--hide-scrollbars",
    "--disable-features=Translate,OptimizationHints,MediaRouter", "--remote-debugging-pipe", "about:blank",
]


class Browser:
    """One page. What it logs, throws and asks the network for is kept."""

    def __init__(self):
        program = shutil.which("chromium") or shutil.which("chromium-browser")
        if not program:
            raise SystemExit("chromium is not installed: apt-get install chromium")
        self.directory = tempfile.mkdtemp(prefix="outrigger-browser-")
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()

        def hand_over():
            # Chromium reads commands from 3 and answers on 4; neither pipe may be overwritten before it is moved.
            command, answers = os.dup(theirs_in), os.dup(theirs_out)
            while min(command, answers) < 5:
                command, answers = os.dup(command), os.dup(answers)
            os.dup2(command, 3)
            os.dup2(answers, 4)

        self.process = subprocess.Popen(
            [program, *ARGUMENTS[:-1], f"--user-data-dir={self.directory}", ARGUMENTS[-1]],
            preexec_fn=hand_over, close_fds=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, env={**os.environ, "HOME": self.directory},
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.input, self.output = ours_in, ours_out
        self.buffer = b""
        self.number = 0
        self.session = None
        self.messages, self.requests, self.failed = [], [], []
        self.unsettled = False
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        number = self.send(method, parameters)
        end = time.monotonic() + PATIENCE
        while True:
            answer = self.next(end - time.monotonic())
            if answer is None:
                raise TimeoutError(f"the browser did not answer {method}")
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def send(self, method, parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        left = json.dumps(message).encode() + b"\0"
        while left:
            left = left[os.write(self.output, left) :]
        return self.number

    def next(self, patience):
        """The next message; events are noted on their way."""
        end = time.monotonic() + patience
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.input], [], [], max(0, end - time.monotonic()))
            if not ready:
                return None
            read = os.read(self.input, 1 << 20)
            if not read:
                raise EOFError("the browser ended")
            self.buffer += read
        text, self.buffer = self.buffer.split(b"\0", 1)
        message = json.loads(text)
        self.note(message.get("method"), message.get("params", {}))
        return message

    def note(self, event, told):
        if event == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.messages.append(" ".join(str(one.get("value", one.get("description"))) for one in told["args"]))
        elif event == "Runtime.exceptionThrown":
            details = told["exceptionDetails"]
            self.messages.append(details.get("exception", {}).get("description") or details["text"])
        elif event == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            # A new pod's own addresses settle within its first seconds, on which Chromium gives up what it is loading.
            if "ERR_NETWORK_CHANGED" in told["entry"]["text"]:
                self.unsettled = True
                return
            self.messages.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
        elif event == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif event == "Network.loadingFailed" and not told.get("canceled"):
            self.failed.append(told.get("errorText"))
        elif event == "Fetch.requestPaused":
            body = self.answers.get(urllib.parse.urlsplit(told["request"]["url"]).path)
            if body is None:
                self.send("Fetch.continueRequest", {"requestId": told["requestId"]})
                return
            fields = [{"name": "content-type", "value": "application/json"}]
            encoded = base64.b64encode(body.encode()).decode()
            self.send("Fetch.fulfillRequest", {"requestId": told["requestId"], "responseCode": 200, "responseHeaders": fields, "body": encoded})

    def answer(self, answers):
        """Answers requests for these paths in the server's place."""
        self.answers = answers
        self.call("Fetch.enable", patterns=[{"urlPattern": f"*{path}*"} for path in answers])

    def evaluate(self, expression):
        """The value of a script, which may be a promise."""
        told = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in told:
            details = told["exceptionDetails"]
            raise RuntimeError(f"{expression}: {details.get('exception', {}).get('description', details['text'])}")
        return told["result"].get("value")

    def wait(self, what, expression, patience=PATIENCE):
        """Until a script gives something true."""
        end = time.monotonic() + patience
        while True:
            value = self.evaluate(expression)
            if value:
                return value
            if time.monotonic() > end:
                raise AssertionError(f"not within {patience} s: {what}; the page says:\n{self.text()}")
            time.sleep(0.1)

    def text(self):
        return self.evaluate("document.body.innerText")

    def open(self, url, width=1440, height=900, scheme="light"):
        self.look(width, height, scheme)
        for _ in range(5):
            self.unsettled = False
            self.call("Page.navigate", url=url)
            self.wait("the page is there", "document.readyState === 'complete' && location.href !== 'about:blank'")
            if not self.unsettled:
                return

    def look(self, width, height, scheme="light"):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def press(self, key, code=None, modifiers=0, text=None):
        keys = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39, "Home": 36, " ": 32}
        number = code or keys.get(key, 0)
        pressed = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": number, "modifiers": modifiers}
        text = text or {"Enter": "\r", " ": " "}.get(key)
        self.call("Input.dispatchKeyEvent", type="keyDown", **pressed, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **pressed)

    def type(self, text):
        self.call("Input.insertText", text=text)

    def screenshot(self, path, whole=False):
        told = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole, **({"clip": self.extent()} if whole else {}))
        with open(path, "wb") as file:
            file.write(base64.b64decode(told["data"]))

    def extent(self):
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        return {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}

    def close(self):
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
