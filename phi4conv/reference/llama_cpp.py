"""Real llama.cpp, from the prebuilt wheel xllamacpp, without a compiler.

Used as the second opinion: what does llama.cpp itself make of a file, its tokenizer, its weights? The wheel's
shared object exports llama.cpp's C interface under Linux and macOS, and ctypes reaches it there. llama.cpp
ends its process when an assertion fails, so it lives in a child process: a file that brings it down raises
EngineError here, with llama.cpp's last words.

Left out: chat templates (llama.cpp's C interface only knows a fixed list of them), GPUs, sampling.
"""

from __future__ import annotations

import enum
import importlib.metadata
import os
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, final

import numpy as np

from phi4conv.arrays import Bytes, Floats
from phi4conv.errors import EngineError, FormatError, Problem
from phi4conv.reference.llama_cpp_process import INSTALL, TESTED_VERSION, Child, find_library

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

# Types that exist in files or in memory, but that ggml_quantize_chunk does not write (ggml.c).
NEVER_ENCODED = frozenset({"F64", "I8", "I16", "I32", "I64", "Q8_1", "Q8_K"})

HINTS = {
    "SIGILL": "this processor lacks instructions that the wheel needs (AVX2 and FMA on x86-64); use another machine",
    "SIGKILL": "the system may have run out of memory; free some, or use a smaller file",
}


class TokenAttribute(enum.IntFlag):
    """What a vocabulary says about a token: `enum llama_token_attr`, llama.h."""

    UNKNOWN = 1
    UNUSED = 2
    NORMAL = 4
    CONTROL = 8
    USER_DEFINED = 16
    BYTE = 32
    NORMALIZED = 64
    LSTRIP = 128
    RSTRIP = 256
    SINGLE_WORD = 512


@final
class LlamaCpp:
    """llama.cpp in a child process, which starts with the first call and holds one model.

    A context manager, for one thread at a time:

        with LlamaCpp() as llama:
            llama.load("phi-4-Q4_K_M.gguf", vocab_only=True)
            llama.tokenize(["Tell me a joke."])

    Every call raises EngineError when xllamacpp is missing, is not the llama.cpp that phi4conv knows, dies
    or stays silent for `timeout` seconds. The next call then starts a new child, without a model.

    `log` holds the warnings and errors that llama.cpp printed during the last call.
    """

    def __init__(self, *, threads: int | None = None, timeout: float = 600.0) -> None:
        """Threads is the number for logits() and generate(); by default every core that this process may use."""
        self.log: list[str] = []
        self._threads = threads or usable_cores()
        self._timeout = timeout
        self._child: Child | None = None
        self._path = ""

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the child process and free all it holds."""
        if self._child is not None:
            self._child.stop()
            self._child = None

    @property
    def version(self) -> str:
        """The version of the installed xllamacpp, such as "2026.10.11549"."""
        find_library()
        return importlib.metadata.version("xllamacpp")

    def load(self, path: str | os.PathLike[str], *, vocab_only: bool = False, check_tensors: bool = True) -> None:
        """Load a GGUF file in place of the one before.

        With vocab_only the weights are not read and need not be there. check_tensors makes llama.cpp read all
        weights first, and refuse NaN and infinity among them.

        Raises FormatError when llama.cpp refuses the file.
        """
        self._path = os.fspath(path)
        if not self._call("load", os.fsencode(self._path), vocab_only, check_tensors):
            raise FormatError(
                Problem(
                    "llama.cpp refuses the file",
                    where=self._path,
                    expected=f"a model that llama.cpp loads (xllamacpp {self.version})",
                    found=self._last_words(),
                    next_step="`phi4conv inspect` shows what is in it",
                )
            )

    def close_model(self) -> None:
        """Free the loaded model, if there is one."""
        if self._child is not None:
            self._call("close_model")

    def metadata(self) -> dict[str, str]:
        """The metadata as llama.cpp prints it, by key; arrays are not among it.

        Bytes that are no UTF-8 appear as lone surrogates ("surrogateescape").
        """
        values: dict[str, bytes] = self._call("metadata")
        return {key: value.decode("utf-8", "surrogateescape") for key, value in values.items()}

    def special_ids(self) -> dict[str, int]:
        """The special tokens that llama.cpp settled on, by name: bos, eos, eot, nl, pad, fim_pre and so on.

        A name is missing where the vocabulary has no such token.
        """
        ids: dict[str, int] = self._call("special_ids")
        return ids

    def end_of_generation(self) -> set[int]:
        """The ids after which llama.cpp stops generating."""
        return set(self._call("end_of_generation"))

    def token_texts(self) -> list[str]:
        """The text of every token in id order, as the file spells it: in the byte-level alphabet for Phi-4.

        Bytes that are no UTF-8 appear as lone surrogates ("surrogateescape").
        """
        return [text.decode("utf-8", "surrogateescape") for text in self._call("token_texts")]

    def token_attributes(self) -> list[TokenAttribute]:
        """What llama.cpp takes every token for, in id order."""
        return [TokenAttribute(bits) for bits in self._call("token_attributes")]

    def tokenize(
        self, texts: Sequence[str | bytes], *, add_special: bool = False, parse_special: bool = True
    ) -> list[list[int]]:
        """The token ids of each text; thousands of texts in one call are welcome.

        add_special adds BOS and EOS if the vocabulary asks for them; parse_special reads "<|im_end|>" as one token.
        Bytes are handed over as they are, and llama.cpp reads invalid UTF-8 as U+FFFD. A text that brings it down
        takes the whole batch with it, without a word on which text it was.

        Raises ValueError for a string with a lone surrogate, which no text file can hold.
        """
        encoded = [text.encode() if isinstance(text, str) else text for text in texts]
        ids: list[list[int]] = self._call("tokenize", encoded, add_special, parse_special)
        return ids

    def detokenize(self, ids: Sequence[int], *, remove_special: bool = False, unparse_special: bool = True) -> bytes:
        """The text of a sequence of tokens, as UTF-8 unless the tokens end within a character.

        llama.cpp drops spaces before punctuation here where the pre-tokenizer asks for it, and `dbrx`, Phi-4's, does;
        the joined pieces() keep them. remove_special drops BOS and EOS at the ends; without unparse_special, control
        tokens give nothing.

        Raises ValueError for an id outside of the vocabulary.
        """
        text: bytes = self._call("detokenize", plain(ids), remove_special, unparse_special)
        return text

    def pieces(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes of each token by itself, special tokens spelled out.

        Raises ValueError for an id outside of the vocabulary.
        """
        pieces: list[bytes] = self._call("pieces", plain(ids))
        return pieces

    def logits(self, ids: Sequence[int], *, n_ctx: int | None = None) -> Floats:
        """Logits of every position, float32 (len(ids), n_vocab), with a float32 KV cache and no flash attention.

        n_ctx is the room for tokens, by default len(ids); llama.cpp rounds it up to a multiple of 256. A LongRoPE
        model takes its short or its long factors by n_ctx, not by the length of the text.

        Raises ValueError for an id outside of the vocabulary.
        """
        room = checked_context(len(ids), n_ctx)
        logits: Floats = self._call("logits", plain(ids), room, self._threads)
        return logits

    def generate(self, ids: Sequence[int], count: int, *, n_ctx: int | None = None) -> list[int]:
        """Up to count tokens that follow ids, each the likeliest at its place.

        Ends early after an end-of-generation token, which is the last id of the answer. n_ctx as in logits(), by
        default len(ids) + count.

        Raises ValueError without ids, or for an id outside of the vocabulary.
        """
        if not ids:
            raise ValueError("generate() needs at least one token to start from")
        room = checked_context(len(ids) + count, n_ctx)
        generated: list[int] = self._call("generate", plain(ids), count, room, self._threads)
        return generated

    def quantize(self, weights: Floats, qtype: GGMLQuantizationType, importance: Floats | None = None) -> Bytes:
        """Encode rows of weights with ggml's reference encoder, ggml_quantize_chunk.

        weights: float32 (rows, cols); importance: float32 (cols,), ignored by types that make no use of it.
        Returns uint8 (rows, row_bytes).

        Raises ValueError for other shapes, for a type that ggml does not encode, and for rows that do not divide
        into its blocks.
        """
        if qtype.name in NEVER_ENCODED:
            raise ValueError(f"ggml does not encode {qtype.name}")
        if weights.ndim != 2 or (importance is not None and importance.shape != weights.shape[1:]):
            shape = None if importance is None else importance.shape
            raise ValueError(f"weights (rows, cols) and importance (cols,) expected, found {weights.shape}, {shape}")
        factors = None if importance is None else np.ascontiguousarray(importance, dtype=np.float32)
        encoded: Bytes = self._call("quantize", np.ascontiguousarray(weights, dtype=np.float32), int(qtype), factors)
        return encoded

    def dequantize(self, encoded: Bytes, qtype: GGMLQuantizationType, cols: int) -> Floats:
        """Decode rows with ggml's reference decoders: uint8 (rows, row_bytes) -> float32 (rows, cols).

        Raises ValueError for other shapes and for a type without a decoder.
        """
        if encoded.ndim != 2 or encoded.dtype != np.uint8:
            raise ValueError(f"uint8 (rows, row_bytes) expected, found {encoded.dtype} {encoded.shape}")
        decoded: Floats = self._call("dequantize", np.ascontiguousarray(encoded), int(qtype), qtype.name, cols)
        return decoded

    def _call(self, name: str, *arguments: Any) -> Any:
        child = self._child
        if child is None:
            child = self._child = self._start()
        try:
            status, value = child.ask((name, arguments), self._timeout)
        except (EOFError, OSError) as error:
            self._child = None
            raise self._gone(child, name, error) from None
        except BaseException:
            self.close()  # an answer that nobody waits for would be taken for the next one
            raise
        self.log = child.read_log()
        if status == "value":
            raise ValueError(value)
        if status == "failed":
            raise EngineError(
                Problem(
                    f"llama.cpp could not {name}: {value}",
                    where=self._path,
                    found=self._last_words(),
                    next_step="look at the file with `phi4conv inspect`; with a long context, see that memory suffices",
                )
            )
        return value

    def _start(self) -> Child:
        library = find_library()
        child = Child(library)
        try:
            status, message = child.receive(self._timeout)
        except (EOFError, OSError) as error:
            raise self._gone(child, "start", error) from None
        except BaseException:
            child.stop()
            raise
        if status != "ok":
            child.stop()
            raise EngineError(
                Problem(
                    f"xllamacpp {self.version} is not the llama.cpp that phi4conv knows: {message}",
                    where=str(library),
                    expected=f"xllamacpp {TESTED_VERSION}",
                    found=f"xllamacpp {self.version}",
                    next_step=INSTALL,
                )
            )
        return child

    def _gone(self, child: Child, name: str, error: Exception) -> EngineError:
        """The error for a child that died, or that was given up, during a call."""
        if isinstance(error, TimeoutError):
            what, ending = f"llama.cpp gave no answer to {name} within {self._timeout:g} s", ""
        else:
            ending = child.ending()
            what = f"llama.cpp ended during {name}: {ending}"
        self.log = child.read_log()
        child.stop()
        return EngineError(
            Problem(
                what,
                where=self._path,
                expected="an answer",
                found=self._last_words(),
                next_step=HINTS.get(ending, "`phi4conv inspect` shows what is in the file, if that is the cause"),
            )
        )

    def _last_words(self) -> str:
        return " | ".join(self.log[-6:]) or "no message"


def usable_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def plain(ids: Sequence[int]) -> list[int]:
    """The ids as Python's own integers, whatever array they come from."""
    return [int(token) for token in ids]


def checked_context(needed: int, n_ctx: int | None) -> int:
    """The context size to ask for; raises ValueError when the tokens do not fit into it."""
    if n_ctx is not None and n_ctx < needed:
        raise ValueError(f"{needed} tokens do not fit into a context of {n_ctx}")
    # A context of 0 would mean the model's own, which can be many GB of KV cache.
    return max(n_ctx or needed, 1)
