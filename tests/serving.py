"""An inference server over HTTP, in vLLM's words, with a small policy behind it; and what may be wrong with it."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from safetensors.torch import load_file

from faulty import Penalised
from holdfast.rollout.embedded.embedded import EmbeddedEngine
from holdfast.rollout.engine import Sampling

TOP = 20


class ModelServer:
    """Serves `model` until `close`.

    `penalty` is the repetition penalty of its own defaults, `defaults` what else it takes where a request says nothing;
    `precision` is its engine's, and `info` what it says of itself at /server_info. `prefix` stands before every prompt
    that it tokenizes; without `logprobs` it reports none; `delay` is in seconds; after `lives` completions it hangs up.
    `reloads`: whether weights can be replaced.
    """

    def __init__(
        self,
        model,
        tokenizer,
        *,
        penalty=1.0,
        defaults=None,
        precision="float32",
        info=None,
        prefix="",
        logprobs=True,
        delay=0.0,
        lives=None,
        reloads=True,
    ):
        self.tokenizer, self.prefix, self.logprobs, self.delay = tokenizer, prefix, logprobs, delay
        self.defaults = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0} | (defaults or {})
        self.info = info
        self.lives, self.reloads, self.version = lives, reloads, "default"
        self.lock, self.bodies = threading.Lock(), []
        self.engine = (
            Penalised(model, tokenizer, penalty)
            if penalty != 1
            else EmbeddedEngine(
                model,
                precision=precision,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        self.model = model
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.serve(self, None)

            def do_POST(self):
                server.serve(self, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def log_message(self, *_): ...

        class Server(ThreadingHTTPServer):
            request_queue_size = 128
            daemon_threads = False  # so that `close` waits for every answer: none runs on into the next test

        self.http = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()

    def serve(self, handler, body):
        try:
            found = self.answer(handler.path, body)
        except ConnectionAbortedError:
            handler.close_connection = True
            return handler.connection.close()
        text = b"" if found is None else json.dumps(found).encode()
        handler.send_response(404 if found is None else 200)
        handler.send_header("Content-Length", str(len(text)))
        handler.end_headers()
        return handler.wfile.write(text)

    def answer(self, path, body):
        if path == "/v1/models":
            return {"data": [{"id": "tiny", "max_model_len": 512}]}
        if path.startswith("/server_info"):
            return self.info
        if path == "/tokenize":
            return {"tokens": self.tokens(body)}
        if path == "/collective_rpc" and self.reloads:
            weights = load_file(Path(body["kwargs"]["weights_path"]) / "model.safetensors")
            self.model.load_state_dict(weights)
            self.engine.sync(self.model, 0)
            return {"results": [None]}
        if path == "/reset_prefix_cache":
            return {"success": True}
        if path == "/update_weight_version":
            self.version = body["new_version"]
            return {"success": True}
        if path == "/weight_info":
            return {"weight_version": self.version}
        return self.complete(body) if path == "/v1/completions" else None

    def tokens(self, body):
        if "messages" in body:
            return self.tokenizer.encode(self.prefix + body["messages"][0]["content"])
        if not body.get("add_special_tokens", True):
            return self.tokenizer.encode(body["prompt"], add_special_tokens=False)
        return self.tokenizer.encode(self.prefix + body["prompt"])

    def complete(self, body):
        time.sleep(self.delay)
        with self.lock:
            self.bodies.append(body)
            if self.lives is not None and len(self.bodies) > self.lives:
                raise ConnectionAbortedError
            if isinstance(self.engine, Penalised):
                self.engine.request = {k: v for k, v in body.items() if k == "repetition_penalty"}
            how = self.defaults | {key: body[key] for key in self.defaults if key in body}
            sampling = Sampling(**how, max_tokens=body["max_tokens"])
            drawn = self.engine.generate(
                [body["prompt"]], sampling, seed=body["seed"] % (1 << 30), sequence_ids=[0], return_distributions=True
            )[0]
        rows = drawn.distributions.clamp(min=-9999.0)
        count = rows.shape[1] if body["logprobs"] == -1 else min(max(body["logprobs"], 1), TOP)
        top = rows.topk(count)
        tables = [
            {f"token_id:{i}": v for i, v in zip(ids, values, strict=True)}
            for ids, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]
        chosen = rows.gather(1, torch.tensor(drawn.token_ids)[:, None])[:, 0].tolist()
        choice = {
            "token_ids": list(drawn.token_ids),
            "prompt_token_ids": body["prompt"],
            "finish_reason": drawn.finish_reason,
            "logprobs": {"token_logprobs": chosen, "top_logprobs": tables} if self.logprobs else None,
        }
        return {"choices": [choice], "usage": {"completion_tokens": len(drawn.token_ids)}}
