"""How a user and an assistant take turns, in the tasks that have them."""

USER: tuple[str, ...] = ("user", ":")
# What stands between an instruction and the answer: the post-instruction tokens.
SUFFIX: tuple[str, ...] = (";", "assistant", ":")


def turn(content: list[str]) -> list[str]:
    """A user's turn and what introduces the answer: `user : CONTENT ; assistant :`"""
    return [*USER, *content, *SUFFIX]


# The same for a text; and for a list of messages, as chat templates have it, without <bos>.
TURN = "user : {} ; assistant :"
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}user : {{ message['content'] }} ; "
    "{% else %}assistant : {{ message['content'] }} {% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)
