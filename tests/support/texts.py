"""Texts that a tokenizer may stumble over, for holding llama.cpp against Hugging Face's tokenizers.

White space beside a special token is left out: Hugging Face strips it where a Phi-4 token says lstrip or
rstrip, and llama.cpp does not, which is no fault of a file.
"""

from __future__ import annotations

import random

PLAIN = (
    "",
    " ",
    "a",
    "Tell me a joke.",
    "Hello, world!",
    "don't I'll WE'VE He's 'tis y'all'd've",
    "  leading and trailing  ",
    "tabs\tand\nnew\r\nlines\n\n\nand more   \n  \t ",
    "one\u00a0two\u2003three\u3000four",
    "1 12 123 1234 12345 3.14159 1,000,000 0xDEADBEEF 1e-10",
    "snake_case camelCase kebab-case SCREAMING_CASE __dunder__",
    "def add(a: int, b: int) -> int:\n    return a + b  # sum\n",
    '#include <stdio.h>\nint main(void) { printf("%d\\n", 42); return 0; }\n',
    '{"key": [1, 2.5, null, true], "nested": {"a": "b\\u00e9"}}',
    "<html><body class='x'>&nbsp;</body></html>",
    "SELECT * FROM t WHERE a >= 'b' AND c <> 1; -- done",
    "https://example.org/path?query=1&other=%20#fragment",
    "$x^2 + y^2 = z^2$ and \\frac{1}{2}",
    "Der Zoo füttert große, süße Äffchen. Straße, STRASSE",
    "L'été, où êtes-vous? Ça va, garçon. Œuvre",
    "¿Cómo estás? ¡Muy bien, señor!",
    "Быстрая коричневая лиса прыгает",
    "Γρήγορη καφέ αλεπού",
    "敏捷的棕色狐狸跳过懒狗。",
    "いろはにほへと ちりぬるを カタカナ ｱｲｳ",
    "빠른 갈색 여우가 뛰어넘는다",
    "הזריז השועל החום",
    "الثعلب البني السريع يقفز",
    "तेज़ भूरी लोमड़ी कूदती है",
    "ด้วยเหตุนี้ ภาษาไทยไม่มีช่องว่าง",
    "é vs e\u0301, ﬁ vs fi, Å vs A\u030a, ² vs 2, Ⅷ ⅷ",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪🇫🇷 ☃️ ❤️‍🔥",
    "\u200b\u200c\u200d\u2060\ufeff zero width",
    "\u202eright to left override\u202c",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝒎𝒂𝒕𝒉 𓀀 𐍈",
    "İstanbul ſtrange Kelvin K Ω Ω ẞ ǅ",
    "'S 'T 'Re 'VE 'm 'LL 'd ’s ’t",
    "!!! ??? ... --- *** ~~~ ``` \"\"\" '''",
    "a" * 300,
    " " * 100,
    "\n" * 50,
    "ab" * 200 + "!" * 200,
    "\x00\x01\x7f\x80\x9f control",
    "\ufffd\uffff\U0010ffff",
    "٣ ४ 五 ½ ¼ ①",
)

WITH_SPECIAL_TOKENS = (
    "<|im_start|>user<|im_sep|>Tell me a joke.<|im_end|><|im_start|>assistant<|im_sep|>",
    "<|im_start|>system<|im_sep|>You are a pirate.<|im_end|><|im_start|>user<|im_sep|>Hi<|im_end|>",
    "<|endoftext|>",
    "<|endoftext|><|endoftext|>a<|im_end|>",
    "x<|im_end|>y",
    "<|im_end|",
    "<|im_start|<|im_start|>>",
    "<|IM_START|>",
    "<|fim_prefix|>def f():<|fim_suffix|>return 1<|fim_middle|>",
    "<|dummy_0|><|dummy_87|>",
)

ALPHABETS = (
    "abcdefghijklmnopqrstuvwxyz ABC .,'!?\n",
    "0123456789 .,-+eE",
    " \t\n\r\u00a0\u2003",
    "äöüßéèñçøåœ ' ",
    "абвгде АБВ ",
    "中文字符汉语 。，",
    "🙂🚀👍🏽‍♀️☃",
    "'sStTrReEvVmMlLdD ",
    "\u0300\u0301\u0327aeo\u200d\u0e31\u0e34",
)


def random_texts(count: int, seed: int) -> list[str]:
    """Short texts from one alphabet or from all of them."""
    generator = random.Random(seed)
    everything = "".join(ALPHABETS)
    texts = []
    for _ in range(count):
        alphabet = generator.choice((*ALPHABETS, everything))
        texts.append("".join(generator.choices(alphabet, k=generator.randrange(1, 40))))
    return texts
