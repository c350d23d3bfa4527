"""The documented configuration is the schema's own."""

from pathlib import Path

from holdfast.train.settings.config import RunConfig
from holdfast.train.settings.reference import config_reference

DOCUMENT = Path(__file__).parents[3] / "docs" / "trainer.md"


def test_docs_hold_the_reference_of_this_version():
    assert config_reference() in DOCUMENT.read_text(encoding="utf-8"), "put config_reference() into docs/trainer.md"


def test_every_key_of_every_section_is_there():
    text = config_reference()
    for name, field in RunConfig.model_fields.items():
        keys = getattr(field.annotation, "model_fields", None)
        for key in keys or [name]:
            assert f"| `{key}` |" in text, key
