"""The identity of a record: where it stands in the sources that a data set was prepared from."""

import dataclasses


@dataclasses.dataclass(frozen=True, order=True)
class RecordId:
    """Position of a record in the sources. Records are ordered by it."""

    source: int  # number of the source in the config
    file: int  # number of the file in the source
    position: int  # byte offset in a file of lines; otherwise the number of the record

    def hash_key(self) -> str:
        """Returns the text that is hashed to draw records, and to digest what was read.

        Its form is frozen: with another one `prepare` would draw other records from the same sources.
        """
        return f"Place(source={self.source}, file={self.file}, position={self.position})"
