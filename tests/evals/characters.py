"""A tokenizer whose ids are letters, so that tokens can be counted by hand."""

from gemma3_jax.tokenizer import vocabulary


class Characters(vocabulary.Tokenizer):
    """Any text of ASCII: an id is a character's code and 3; `per_character` ids stand for each, the same ones."""

    def __init__(self, per_character: int = 1):
        self.pad, self.eos, self.bos, self.size, self.digest = 0, 1, 2, 131, "characters"
        self.per_character = per_character

    def encode(self, text: str, *, parse_control: bool = False) -> list[int]:
        return [ord(character) + 3 for character in text for _ in range(self.per_character)]

    def decode(self, ids) -> str:
        return "".join(chr(token - 3) for token in list(ids)[:: self.per_character] if token > 2)
