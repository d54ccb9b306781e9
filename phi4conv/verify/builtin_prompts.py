"""The conversations that both sides are asked about when the user names none.

Each is a finished exchange of 40 to 120 tokens of Phi-4's, of which the last answer takes more than half: it is the
second half that is scored. Together they touch what Phi-4 is asked for: prose, code, sums, other languages, lists.
"""
# ruff: noqa: RUF001  # Chinese has commas and question marks of its own

from __future__ import annotations

from phi4conv.check.chats import assistant, system, user
from phi4conv.template import Chat

JOKE = (
    user("Tell me a joke."),
    assistant(
        "A snail comes into an inn and asks for a glass of water. The landlord throws it out of the door. Three years "
        'later the snail is back. "And what," it says, "was that for?"'
    ),
)

EXPLANATION = (
    system("You are a patient teacher. Answer in a few plain sentences."),
    user("Why is the sky blue?"),
    assistant(
        "Sunlight is a mixture of all colours. On its way through the air it meets molecules, and these scatter short "
        "waves far more than long ones. Blue light has the shorter waves, so it reaches our eyes from every part of "
        "the sky, while red and yellow mostly go straight on."
    ),
)

CODE = (
    user("Write a Python function that tells whether a number is prime."),
    assistant(
        "```python\n"
        "def is_prime(number: int) -> bool:\n"
        '    """Whether a number has exactly two divisors."""\n'
        "    if number < 2:\n"
        "        return False\n"
        "    for divisor in range(2, int(number**0.5) + 1):\n"
        "        if number % divisor == 0:\n"
        "            return False\n"
        "    return True\n"
        "```"
    ),
)

ARITHMETIC = (
    user("A train covers 240 km in 3 hours. How fast is it?"),
    assistant("240 / 3 = 80 km/h."),
    user("And in 45 minutes?"),
    assistant(
        "45 minutes are 45 / 60 = 0.75 hours. In one hour the train covers 80 km, so in 0.75 hours it covers "
        "0.75 * 80 = 60 km."
    ),
)

GERMAN = (
    user("Was ist der Unterschied zwischen Wetter und Klima?"),
    assistant(
        "Das Wetter ist das, was wir heute draußen erleben: Sonne, Regen oder Wind. Das Klima dagegen ist der mittlere "
        "Zustand über viele Jahre, meist dreißig, in einer größeren Gegend."
    ),
)

FRENCH = (
    user("Comment fait-on du pain ?"),
    assistant(
        "On mélange de la farine, de l'eau, du sel et un peu de levure. On pétrit la pâte, puis on la laisse lever "
        "jusqu'à ce qu'elle ait doublé de volume. Enfin, on la cuit dans un four bien chaud."
    ),
)

CHINESE = (
    user("为什么会有四季？"),
    assistant(
        "因为地球的自转轴是倾斜的。地球绕太阳公转时，北半球有时朝向太阳，有时背向太阳，阳光照射的角度和时间不断变化，"
        "于是就有了春夏秋冬。"
    ),
)

LIST = (
    system("You answer with short lists."),
    user("What do I need for a day in the mountains?"),
    assistant(
        "1. **Boots** with a good sole\n"
        "2. **Water**, at least 1.5 litres\n"
        "3. A map and a compass\n"
        "4. Bread, cheese and some fruit\n"
        "5. A warm jacket, even in July"
    ),
)

CONVERSATIONS = {
    "a joke": JOKE,
    "an explanation": EXPLANATION,
    "Python code": CODE,
    "arithmetic": ARITHMETIC,
    "German": GERMAN,
    "French": FRENCH,
    "Chinese": CHINESE,
    "a list": LIST,
}

BUILT_IN: tuple[Chat, ...] = tuple(
    Chat(messages, add_generation_prompt=False, name=name) for name, messages in CONVERSATIONS.items()
)
