"""The child process of `phi4conv.reference.llama_cpp`: it holds llama.cpp and answers one call at a time.

Warnings and errors of llama.cpp go to stderr as they come, so that they are still there after an abort;
the parent reads them from the file that it gave as stderr.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt

from phi4conv.arrays import Bytes, Floats
from phi4conv.reference.llama_cpp_abi import (
    SPECIAL_TOKENS,
    Batch,
    InterfaceError,
    LogCallback,
    open_library,
)

# enum ggml_log_level, ggml.h
LOG_WARN, LOG_CONTINUED = 3, 5

# enum ggml_type, ggml.h; GGML_TYPE_F32 is also the type of an exact KV cache.
F32, F16, BF16 = 0, 1, 30

# llama.cpp's own default for n_ubatch: the tokens of one pass. Longer texts are decoded in parts of this size.
PASS_TOKENS = 512


class CallError(Exception):
    """llama.cpp reported that it could not do what was asked."""


class Engine:
    """llama.cpp in this process, and the one model that is loaded."""

    def __init__(self, library_path: str) -> None:
        self._library = open_library(library_path)
        self._log = LogCallback(log_writer())  # llama.cpp keeps the pointer, so the object must live as long
        self._library.llama_log_set(self._log, None)
        self._library.llama_backend_init()
        self._model: int | None = None
        self._vocab: int | None = None
        self._token_count = 0
        self._vocab_only = False

    def load(self, path: bytes, vocab_only: bool, check_tensors: bool) -> bool:
        """Load a file in place of the present one; False when llama.cpp refuses it."""
        self.close_model()
        params = self._library.llama_model_default_params()
        # An empty list keeps the work on the CPU: a GPU does not calculate in plain float32.
        no_devices = (ctypes.c_void_p * 1)(None)
        params.devices = ctypes.addressof(no_devices)
        params.n_gpu_layers = 0
        params.vocab_only = vocab_only
        params.check_tensors = check_tensors
        self._model = self._library.llama_model_load_from_file(path, params)
        if self._model is None:
            return False
        self._vocab = self._library.llama_model_get_vocab(self._model)
        self._token_count = self._library.llama_vocab_n_tokens(self._vocab)
        self._vocab_only = vocab_only
        return True

    def close_model(self) -> None:
        """Free the model, if one is loaded."""
        if self._model is not None:
            self._library.llama_model_free(self._model)
        self._model = self._vocab = None

    def metadata(self) -> dict[str, bytes]:
        """Every metadata value that is not an array, as llama.cpp prints it, by key."""
        model = self._loaded_model()
        library = self._library
        values = {}
        for index in range(library.llama_model_meta_count(model)):
            key = printed(library.llama_model_meta_key_by_index, model, index)
            values[key.decode("utf-8", "surrogateescape")] = printed(
                library.llama_model_meta_val_str_by_index, model, index
            )
        return dict(sorted(values.items()))

    def special_ids(self) -> dict[str, int]:
        """The ids of the special tokens that the vocabulary has."""
        vocab = self._loaded_vocab()
        ids = {name: getattr(self._library, f"llama_vocab_{name}")(vocab) for name in SPECIAL_TOKENS}
        return {name: token for name, token in ids.items() if token >= 0}

    def end_of_generation(self) -> list[int]:
        """The ids after which llama.cpp stops generating."""
        vocab = self._loaded_vocab()
        return [token for token in range(self._token_count) if self._library.llama_vocab_is_eog(vocab, token)]

    def token_texts(self) -> list[bytes]:
        """The text of every token as the vocabulary spells it."""
        vocab = self._loaded_vocab()
        return [self._library.llama_vocab_get_text(vocab, token) for token in range(self._token_count)]

    def token_attributes(self) -> list[int]:
        """The llama_token_attr bits of every token."""
        vocab = self._loaded_vocab()
        return [self._library.llama_vocab_get_attr(vocab, token) for token in range(self._token_count)]

    def tokenize(self, texts: Sequence[bytes], add_special: bool, parse_special: bool) -> list[list[int]]:
        """The token ids of each UTF-8 text."""
        vocab = self._loaded_vocab()
        flags = (add_special, parse_special)
        ids = np.empty(max(map(len, texts), default=0) + 8, dtype=np.int32)
        answer = []
        for text in texts:
            count = self._library.llama_tokenize(vocab, text, len(text), ids.ctypes.data, len(ids), *flags)
            if count < 0:  # more tokens than bytes: each escaped space of a SentencePiece vocabulary can be three
                ids = np.empty(-count, dtype=np.int32)
                count = self._library.llama_tokenize(vocab, text, len(text), ids.ctypes.data, len(ids), *flags)
            answer.append(ids[:count].tolist())
        return answer

    def detokenize(self, ids: Sequence[int], remove_special: bool, unparse_special: bool) -> bytes:
        """The text of a sequence of tokens."""
        tokens = self._token_array(ids)
        flags = (remove_special, unparse_special)

        def write(buffer: Any, size: int) -> int:
            return int(
                self._library.llama_detokenize(self._vocab, tokens.ctypes.data, len(tokens), buffer, size, *flags)
            )

        return written(write)

    def pieces(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes of each token for itself, special tokens spelled out."""
        self._token_array(ids)

        def piece(token: int) -> bytes:
            return written(
                lambda buffer, size: self._library.llama_token_to_piece(self._vocab, token, buffer, size, 0, True)
            )

        return [piece(token) for token in ids]

    def logits(self, ids: Sequence[int], n_ctx: int, threads: int) -> Floats:
        """Logits of every position, (len(ids), n_vocab)."""
        tokens = self._token_array(ids)
        answer = np.empty((len(tokens), self._token_count), dtype=np.float32)
        with self._context(n_ctx, threads) as context:
            for start in range(0, len(tokens), PASS_TOKENS):
                part = tokens[start : start + PASS_TOKENS]
                answer[start : start + len(part)] = self._decode(context, part, outputs=len(part))
        return answer

    def generate(self, ids: Sequence[int], count: int, n_ctx: int, threads: int) -> list[int]:
        """Up to count tokens, each the likeliest; the last one may be an end-of-generation token."""
        tokens = self._token_array(ids)
        generated: list[int] = []
        with self._context(n_ctx, threads) as context:
            for start in range(0, len(tokens), PASS_TOKENS):
                logits = self._decode(context, tokens[start : start + PASS_TOKENS], outputs=1)
            while len(generated) < count:
                token = int(logits[-1].argmax())
                generated.append(token)
                if self._library.llama_vocab_is_eog(self._vocab, token) or len(generated) == count:
                    break
                logits = self._decode(context, np.array([token], dtype=np.int32), outputs=1)
        return generated

    def quantize(self, weights: Floats, qtype: int, importance: Floats | None) -> Bytes:
        """Encode rows of weights: (rows, cols) -> (rows, row_bytes)."""
        rows, cols = weights.shape
        encoded = np.zeros((rows, self._row_bytes(qtype, cols)), dtype=np.uint8)
        if self._library.ggml_quantize_requires_imatrix(qtype) and importance is None:
            raise ValueError(f"ggml type {qtype} cannot be encoded without importance")
        target = encoded.ctypes.data
        factors = None if importance is None else importance.ctypes.data
        if encoded.size:
            self._library.ggml_quantize_chunk(qtype, weights.ctypes.data, target, 0, rows, cols, factors)
        return encoded

    def dequantize(self, encoded: Bytes, qtype: int, type_name: str, cols: int) -> Floats:
        """Decode rows: (rows, row_bytes) -> (rows, cols)."""
        rows = encoded.shape[0]
        if encoded.shape[1] != self._row_bytes(qtype, cols):
            expected = self._row_bytes(qtype, cols)
            raise ValueError(f"rows of {cols} weights take {expected} bytes as {type_name}, not {encoded.shape[1]}")
        if qtype == F32:
            return encoded.view(np.float32)
        decoded = np.empty((rows, cols), dtype=np.float32)
        self._decoder(qtype, type_name)(encoded.ctypes.data, decoded.ctypes.data, decoded.size)
        return decoded

    def _decoder(self, qtype: int, type_name: str) -> Any:
        if qtype == F16:
            return self._library.ggml_fp16_to_fp32_row
        if qtype == BF16:
            return self._library.ggml_bf16_to_fp32_row
        # ggml-quants.h spells the K of a K-quant as gguf does, everything else in lower case: q4_K, iq4_xs.
        name = f"dequantize_row_{type_name.lower()}"
        name = name[:-2] + "_K" if name.endswith("_k") else name
        decoder = getattr(self._library, name, None)
        if decoder is None:
            raise ValueError(f"llama.cpp has no {name}")
        decoder.restype = None
        decoder.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        return decoder

    def _row_bytes(self, qtype: int, cols: int) -> int:
        block = self._library.ggml_blck_size(qtype)
        if cols % block:
            raise ValueError(f"rows of {cols} weights do not divide into blocks of {block}")
        return int(self._library.ggml_row_size(qtype, cols))

    def _loaded_model(self) -> int:
        if self._model is None:
            raise ValueError("no model is loaded: call load() first; a child that died has lost its model")
        return self._model

    def _loaded_vocab(self) -> int | None:
        self._loaded_model()
        return self._vocab

    def _token_array(self, ids: Sequence[int]) -> npt.NDArray[np.int32]:
        """The ids for llama.cpp, which trusts them; raises ValueError when one is not in the vocabulary."""
        self._loaded_model()
        wrong = [token for token in ids if not 0 <= token < self._token_count]
        if wrong:
            raise ValueError(f"token ids outside of the vocabulary of {self._token_count}: {wrong[:10]}")
        return np.array(ids, dtype=np.int32)

    @contextlib.contextmanager
    def _context(self, n_ctx: int, threads: int) -> Iterator[int]:
        """A fresh KV cache for n_ctx tokens, in float32, with flash attention off."""
        model = self._loaded_model()
        if self._vocab_only:
            raise ValueError("only the vocabulary is loaded; the weights are needed")
        params = self._library.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = PASS_TOKENS
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = F32
        params.flash_attn_type = 0
        context = self._library.llama_init_from_model(model, params)
        if context is None:
            raise CallError(f"no context for {n_ctx} tokens")
        try:
            yield context
        finally:
            self._library.llama_free(context)

    def _decode(self, context: int, tokens: npt.NDArray[np.int32], *, outputs: int) -> Floats:
        """Logits of the last `outputs` of the tokens, which follow what the context already holds.

        The answer, (outputs, n_vocab), lies in llama.cpp's memory and is good until the next call.
        """
        wanted = np.zeros(len(tokens), dtype=np.int8)
        wanted[len(tokens) - outputs :] = 1
        batch = Batch(
            n_tokens=len(tokens),
            token=tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            logits=wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )
        status = self._library.llama_decode(context, batch)
        if status != 0:
            raise CallError(f"llama_decode returned {status}")
        values = self._library.llama_get_logits(context)
        return np.ctypeslib.as_array(values, shape=(outputs, self._token_count))


def log_writer() -> Callable[[int, bytes, int | None], None]:
    """A log callback that writes warnings, errors and what continues them to stderr."""
    keep = False

    def write(level: int, text: bytes, _user_data: int | None) -> None:
        nonlocal keep
        if level != LOG_CONTINUED:
            keep = level >= LOG_WARN
        if keep:
            os.write(2, text)

    return write


def printed(function: Callable[..., int], *arguments: Any) -> bytes:
    """The string that a function prints in the manner of snprintf."""
    size = function(*arguments, None, 0)
    if size < 0:
        raise CallError(f"no metadata at index {arguments[-1]}")
    buffer = ctypes.create_string_buffer(size + 1)
    function(*arguments, buffer, size + 1)
    return buffer.raw[:size]


def written(write: Callable[[Any, int], int]) -> bytes:
    """The bytes that a function writes, which answers with minus the size it needs when the buffer is too small."""
    buffer = ctypes.create_string_buffer(256)
    size = write(buffer, len(buffer))
    if size < 0:
        buffer = ctypes.create_string_buffer(-size)
        size = write(buffer, len(buffer))
    return buffer.raw[:size]


def serve(descriptor: int, library_path: str) -> None:
    """Answer calls on the pipe until the parent closes it.

    A call is (method of Engine, arguments); an answer is ("ok", result), ("value", message) for a ValueError
    of the caller, or ("failed", message). Anything else that goes wrong ends the process.
    """
    import resource  # noqa: PLC0415  # not there under Windows, where this module must still be importable

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which then closes the pipe
    # An abort is an answer here, not an accident that wants a core file.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    connection: Connection[Any, Any] = Connection(descriptor)
    try:
        engine = Engine(library_path)
    except InterfaceError as error:
        connection.send(("failed", str(error)))
        return
    connection.send(("ok", None))
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            name, arguments = connection.recv()
            connection.send(answer_to(engine, name, arguments))


def answer_to(engine: Engine, name: str, arguments: Sequence[Any]) -> tuple[str, Any]:
    """One call, answered as serve() says."""
    try:
        return "ok", getattr(engine, name)(*arguments)
    except ValueError as error:
        return "value", str(error)
    except CallError as error:
        return "failed", str(error)
