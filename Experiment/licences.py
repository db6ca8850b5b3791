"""Licences of data and of weights that this project uses, as others know them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Licence:
    """A licence.

    Attributes:
        name: As people call it.
        id: As Hugging Face calls it.
        page: Address of its text; empty where that is not known.
        duty: What it asks of those who pass on what it covers, as the end of a sentence.
    """

    name: str
    id: str
    page: str
    duty: str


CC_BY = Licence("CC BY 4.0", "cc-by-4.0", "https://creativecommons.org/licenses/by/4.0/", "its authors be named")
CC_BY_NC = Licence(
    "CC BY-NC 4.0", "cc-by-nc-4.0", "https://creativecommons.org/licenses/by-nc/4.0/",
    "its authors be named and that the use be non-commercial",
)  # fmt: skip
OPENRAIL_M = Licence(
    "CreativeML Open RAIL-M", "creativeml-openrail-m", "https://huggingface.co/spaces/CompVis/stable-diffusion-license",
    "the uses that its Attachment A rules out stay ruled out, also for images",
)  # fmt: skip
OPENRAIL_PLUS = Licence(
    "CreativeML Open RAIL++-M", "openrail++", "https://huggingface.co/stabilityai/stable-diffusion-2/blob/main/LICENSE-MODEL",
    "the uses that its Attachment A rules out stay ruled out, also for images",
)  # fmt: skip
OF_OTHER_WEIGHTS = Licence("the licence of the weights", "other", "", "their licence, which is not known here, holds too")
NOT_KNOWN = Licence("no licence that is known", "unknown", "", "their authors be asked")
OF_DATA = {licence.name: licence for licence in (CC_BY, CC_BY_NC)}
