"""Chinese texts with headings out of Debian's documentation packages: sections of two books, and man pages."""

import gzip
import io
import re
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

from jobs.demo.downloads import Download, cache_folder, fetch
from pipeline.errors import SourceError

REFERENCE = Download(
    requirement="debian-reference-zh-cn=2.100",
    file_name="debian-reference-zh-cn_2.100_all.deb",
    sha256="6d2d8d9a646397e28b04cdff23d2e4374101ebf9be348e35961af62c8a2d0977",
)
FAQ = Download(
    requirement="debian-faq-zh-cn=11.1",
    file_name="debian-faq-zh-cn_11.1_all.deb",
    sha256="3545356b1aa04d87e91dd15e8406210cf5b4f476662e597897bcb42234591758",
)
MANPAGES = Download(
    requirement="manpages-zh=1.6.4.0-1",
    file_name="manpages-zh_1.6.4.0-1_all.deb",
    sha256="81bae29495f6445db290e3f329f1203eb19b651c2a7ea165b74ebdc853a32ac1",
)
CHAPTER = re.compile(r"\./usr/share/(?:debian-reference/(ch\d+)|doc/debian/FAQ/zh-cn/([a-z-]+))\.zh-cn\.html")
MANPAGE = re.compile(r"\./usr/share/man/zh_CN/man([1-8])/[^/]+\.gz")
CHINESE = re.compile("[一-鿿]")
LEAST_CHARACTERS = 40
"""Shorter texts say too little to be found by."""

LONGEST_CHARACTERS = 600

NAMES = ("名称", "NAME", "名字")
"""How the section begins that says in a line what a man page is about."""

IMPRINTS = ("跋", "作者", "译者", "版权", "AUTHOR", "COPYRIGHT", "COLOPHON")
"""How sections begin that say nothing of their page."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A text with the heading a person gave it."""

    book: str
    chapter: str
    heading: str
    text: str


@dataclass(frozen=True, slots=True)
class ManPage:
    """What a man page is about, and its sections."""

    section: str
    """Of the manual, 1 to 8."""
    name: str
    """One line."""
    texts: tuple[str, ...]


def passages(cache: Path | None = None) -> list[Passage]:
    """Give all passages with a Chinese heading and text, each heading and each text once, in the order of the books.

    Raises:
        SourceError: a package cannot be fetched, or is not the one expected.
    """
    found: dict[str, Passage] = {}
    texts: set[str] = set()
    for download in (REFERENCE, FAQ, MANPAGES):
        book = download.requirement.split("=")[0]
        for name, content in _members(fetch(download, cache or cache_folder(), _apt_download)):
            for passage in _passages_of(book, name, content):
                is_told = CHINESE.search(passage.heading) and len(passage.text) >= LEAST_CHARACTERS
                if is_told and CHINESE.search(passage.text) and passage.text not in texts:
                    texts.add(found.setdefault(passage.heading, passage).text)
    return list(found.values())


def man_pages(cache: Path | None = None) -> list[ManPage]:
    """Give the man pages with a Chinese name and at least one Chinese section, in the order of the package.

    Raises:
        SourceError: the package cannot be fetched, or is not the one expected.
    """
    package = fetch(MANPAGES, cache or cache_folder(), _apt_download)
    pages = [_man_page(page[1], content) for name, content in _members(package) if (page := MANPAGE.fullmatch(name))]
    return [page for page in pages if CHINESE.search(page.name) and page.texts]


def _man_page(section: str, content: bytes) -> ManPage:
    sections = _roff_sections(gzip.decompress(content).decode("utf-8", "replace"))
    named = next((lines for title, lines in sections if title.startswith(NAMES)), "")
    told = (_flat(lines) for title, lines in sections if not title.startswith((*NAMES, *IMPRINTS)))
    texts = [text for text in told if len(text) >= LEAST_CHARACTERS and len(CHINESE.findall(text)) >= len(text) / 4]
    return ManPage(section, named.partition(" - ")[2].strip(), tuple(texts))


def _passages_of(book: str, name: str, content: bytes) -> Iterator[Passage]:
    if chapter := CHAPTER.fullmatch(name):
        reader = _Sections()
        reader.feed(content.decode("utf-8"))
        for heading, lines in reader.sections:
            bare = re.sub(r"^[\s第章\d.]+", "", heading).strip()
            text = " ".join(line for line in lines if line.strip() != "目录")
            yield Passage(book, chapter[1] or chapter[2], bare, _flat(text))
    elif page := MANPAGE.fullmatch(name):
        sections = _roff_sections(gzip.decompress(content).decode("utf-8", "replace"))
        named = next((lines for title, lines in sections if title in ("名称", "NAME", "名字")), "")
        told = next((lines for title, lines in sections if title in ("描述", "DESCRIPTION")), "")
        yield Passage(book, f"man{page[1]}", named.partition(" - ")[2].strip(), _flat(told))


def _flat(text: str) -> str:
    return " ".join(text.split())[:LONGEST_CHARACTERS]


def _members(package: Path) -> Iterator[tuple[str, bytes]]:
    unpacked = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(package)], capture_output=True, check=False)
    if unpacked.returncode != 0:
        raise SourceError(f"{package} cannot be unpacked with dpkg-deb: {unpacked.stderr.decode(errors='replace')}")
    with tarfile.open(fileobj=io.BytesIO(unpacked.stdout)) as archive:
        for member in archive.getmembers():
            content = archive.extractfile(member) if member.isreg() else None
            if content is not None and (CHAPTER.fullmatch(member.name) or MANPAGE.fullmatch(member.name)):
                yield member.name, content.read()


def _roff_sections(page: str) -> list[tuple[str, str]]:
    """Return (title, text) of every `.SH`, without roff's requests and escapes."""
    sections = []
    for section in re.split(r"^\.SH\s+", page, flags=re.MULTILINE)[1:]:
        title, _, body = section.partition("\n")
        lines = [line for line in body.splitlines() if line[:1] not in (".", "'")]
        text = re.sub(r"\\(?:f[A-Z]|f\(..|\*\(..|[,/&]|\[[^]]*\])", "", " ".join(lines))
        sections.append((title.strip().strip('"'), re.sub(r"\\(.)", r"\1", text)))
    return sections


class _Sections(HTMLParser):
    """Collects (heading, paragraphs) of a chapter as DocBook writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.sections: list[tuple[str, list[str]]] = []
        self.inside: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("h1", "h2", "h3", "h4") and ("class", "title") in attrs:
            self.sections.append(("", []))
            self.inside = "heading"
        elif tag == "p" and self.sections:
            self.sections[-1][1].append("")
            self.inside = "text"

    def handle_endtag(self, tag: str) -> None:
        if tag in ("h1", "h2", "h3", "h4", "p"):
            self.inside = None

    def handle_data(self, data: str) -> None:
        if self.inside == "heading":
            heading, lines = self.sections[-1]
            self.sections[-1] = (heading + data, lines)
        elif self.inside == "text":
            self.sections[-1][1][-1] += data


def _apt_download(download: Download, scratch: Path) -> None:
    command = ["apt-get", "download", "--quiet", download.requirement]
    try:
        finished = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
        reason = finished.stderr.strip().splitlines()[-1:] or [""]
    except FileNotFoundError:
        reason = ["there is no apt-get here."]
    if not (scratch / download.file_name).exists():
        raise SourceError(
            f"{download.requirement} could not be fetched: {reason[0]} Run `apt-get update` and try again, or put "
            f"{download.file_name} from Debian's archive into {scratch.parent} by hand."
        )
