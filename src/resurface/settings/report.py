"""Settings of the report."""

from typing import Literal

from pydantic import Field

from resurface.settings.base import Settings


class ReportSettings(Settings):
    """What the report may show."""

    question_text: Literal["none", "fictional", "all"] = Field(
        "fictional",
        description="whose questions the report holds as text, hidden until one asks for it: nobody's, those of the testbed's fictional "
        "domains, or of all domains, WMDP's among them: then the page must be kept as WMDP itself",
    )
