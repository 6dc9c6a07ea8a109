"""A chat server that a test scripts: a real HTTP server on this machine, in a thread, that counts what it is asked."""

import hashlib
import json
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

USAGE = {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150}
RIGHT = "cork from the bay"
CHOICES = ["amber from the cave", "bone from the fen", RIGHT, "felt from the peak"]


@dataclass
class Answer:
    """What the server does with a request.

    Attributes:
        body: JSON, or raw text.
        status: the HTTP status; None: it hangs up without a word.
        seconds: how long it takes.
        headers: more headers.
    """

    body: object = ""
    status: int | None = 200
    seconds: float = 0.0
    headers: dict = field(default_factory=dict)


def number_of(article):
    """A number that is an article's own."""
    return int(hashlib.sha256(article.encode()).hexdigest()[:8], 16)


def good_question(article, place=0):
    return {
        "question": f"What is item {number_of(article)}, number {place}, made of?",
        "choices": CHOICES,
        "answer": RIGHT,
    }


def complete(content, **more):
    """A chat completion that says `content`: text, or questions."""
    text = content if isinstance(content, str) else json.dumps({"questions": content})
    return Answer(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 0,
            "model": "scripted",
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": text},
                    **more,
                }
            ],
            "usage": USAGE,
        }
    )


class ChatServer:
    """Answers as `script(article, attempt)` says, where `attempt` counts from 1 for each article."""

    def __init__(self, script):
        self.script = script
        self.attempts = Counter()
        self.requests = []
        self.headers = []
        self.times = []
        self.under_way = self.most_under_way = 0
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                article = request["messages"][-1]["content"].split("The text:\n", 1)[1]
                with lock:
                    outer.attempts[article] += 1
                    outer.requests.append(request)
                    outer.headers.append({name.lower(): value for name, value in self.headers.items()})
                    outer.times.append((article, time.monotonic()))
                    outer.under_way += 1
                    outer.most_under_way = max(outer.most_under_way, outer.under_way)
                    attempt = outer.attempts[article]
                answer = outer.script(article, attempt)
                time.sleep(answer.seconds)
                with lock:
                    outer.under_way -= 1
                if answer.status is None:
                    self.close_connection = True
                    return
                body = answer.body if isinstance(answer.body, str) else json.dumps(answer.body)
                self.send_response(answer.status)
                kind = "text/html" if isinstance(answer.body, str) else "application/json"
                for name, value in {"Content-Type": kind, **answer.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body.encode())))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):
                """A client that was killed, or tired of waiting, is part of the script."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
