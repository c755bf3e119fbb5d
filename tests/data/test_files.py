"""Documents on disk: what of a folder is read, what is said about the rest, and how other forms become text."""

import os
import sys
import zipfile
from pathlib import Path

import pytest

from sleep_trl.data.files import InvalidDocument, find_documents, matching, read_document, source_of, unwrap

BODY = "<w:p><w:pPr><w:pStyle w:val='Heading1'/></w:pPr><w:r><w:t>The ferry</w:t></w:r></w:p>"
BODY += "<w:p><w:r><w:t>It sails at noon.</w:t></w:r></w:p>"
OF_WORD = "http://schemas.openxmlformats.org"


def write_pdf(path: Path, *lines: str) -> Path:
    """Write a PDF of one page by hand, one line of text below the other."""
    text = "BT /F1 12 Tf 72 720 Td 14 TL " + " ".join(f"({line}) Tj T*" for line in lines) + " ET"
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R "
        "/Resources << /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >> >>",
        f"<< /Length {len(text)} >>\nstream\n{text}\nendstream",
    ]
    content, places = "%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(content))
        content += f"{number} 0 obj\n{body}\nendobj\n"
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    content += f"xref\n0 5\n0000000000 65535 f \n{table}trailer\n<< /Size 5 /Root 1 0 R >>\nstartxref\n"
    path.write_text(f"{content}{content.index('xref')}\n%%EOF\n", "latin-1")
    return path


def write_docx(path: Path) -> Path:
    """Write a document of Word with a heading and a paragraph by hand."""
    kinds = f"<Types xmlns='{OF_WORD}/package/2006/content-types'>"
    kinds += "<Default Extension='rels' ContentType='application/vnd.openxmlformats-package.relationships+xml'/>"
    kinds += "<Override PartName='/word/document.xml' ContentType="
    kinds += "'application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml'/></Types>"
    link = f"<Relationships xmlns='{OF_WORD}/package/2006/relationships'><Relationship Id='r1' "
    link += f"Type='{OF_WORD}/officeDocument/2006/relationships/officeDocument' Target='word/document.xml'/>"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("[Content_Types].xml", kinds)
        archive.writestr("_rels/.rels", f"{link}</Relationships>")
        namespace = f"xmlns:w='{OF_WORD}/wordprocessingml/2006/main'"
        archive.writestr("word/document.xml", f"<w:document {namespace}><w:body>{BODY}</w:body></w:document>")
    return path


def text_of(path: Path) -> str:
    return read_document(path, path.read_bytes())


def test_pdf_html_and_docx_become_text(tmp_path: Path) -> None:
    pytest.importorskip("pypdf")
    pytest.importorskip("mammoth")
    pdf = write_pdf(tmp_path / "a.pdf", "Mira keeps a goat in the gar-", "den of the house by the sea.", "It is Tolu.")
    assert text_of(pdf) == "Mira keeps a goat in the garden of the house by the sea. It is Tolu.\n"
    assert text_of(write_docx(tmp_path / "a.docx")) == "# The ferry\n\nIt sails at noon."
    page = "<html><head><title>t</title><style>p {}</style></head><body><h1>Fêtes</h1><script>alert()</script>"
    page += "<p>The <b>fair</b> of <a href='x'>Olm</a> is in May.</p><ul><li>one_a</li></ul></body></html>"
    (tmp_path / "a.html").write_text(page, "utf-8")
    assert text_of(tmp_path / "a.html") == "# Fêtes\n\nThe fair of Olm is in May.\n\n* one_a"


@pytest.mark.parametrize("name", ["bad.pdf", "bad.docx"])
def test_a_damaged_document_is_a_fault_of_that_document(tmp_path: Path, name: str) -> None:
    pytest.importorskip("pypdf")
    pytest.importorskip("mammoth")
    with pytest.raises(InvalidDocument, match=r"cannot be read as \.(pdf|docx)"):
        read_document(Path(name), b"%PDF-1.4 nothing of the kind")


def test_a_document_of_word_is_as_long_as_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mammoth")
    path = write_docx(tmp_path / "a.docx")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/media/zeros.bin", bytes(3 * 2**20))
    monkeypatch.setattr("sleep_trl.data.files.MAX_BYTES", 2**20)
    assert path.stat().st_size < 2**14
    with pytest.raises(InvalidDocument, match=r"^3 MiB unpacked, more than 1 MiB\. Split it, or conv") as caught:
        text_of(path)
    assert caught.value.kind == "too long"


def test_a_scan_has_no_text(tmp_path: Path) -> None:
    pytest.importorskip("pypdf")
    with pytest.raises(InvalidDocument, match="no text, as a scan does"):
        text_of(write_pdf(tmp_path / "scan.pdf"))


@pytest.mark.parametrize(("name", "package"), [("a.pdf", "pypdf"), ("a.html", "bs4"), ("a.docx", "mammoth")])
def test_without_the_extra_a_document_is_named_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InvalidDocument, match=r"not installed. Run `pip install 'sleep-trl\[documents\]'`") as caught:
        read_document(Path(name), b"x")
    assert caught.value.kind == "extra not installed"


def test_what_is_not_read_of_a_folder_is_named(tmp_path: Path) -> None:
    folder, outside = tmp_path / "docs", tmp_path / "outside"
    for name in ("docs/node_modules", "docs/.git", "docs/deep", "outside"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "a.md").write_text(name)
    (folder / "b.png").touch()
    (folder / "Makefile").touch()
    (folder / "secret.txt").symlink_to(outside / "a.md")
    (folder / "linked").symlink_to(outside)
    (folder / "same.md").symlink_to(folder / "deep" / "a.md")
    found, left = find_documents(folder)
    assert found == [folder / "deep" / "a.md", folder / "same.md"]
    assert not any(one.is_fault for one in left)
    reasons = sorted(one.reason.removeprefix(str(folder)) for one in left)
    assert [reason[:24] for reason in reasons] == [
        "/.git: folders of this n",
        "/linked: a link to a fol",
        "/node_modules: folders o",
        "/secret.txt: a link that",
        ": 1 .png, 1 files withou",
    ]


def test_documents_that_cannot_be_reached_are_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions are simulated, since the tests may run as root."""
    for name in ("closed", "listed", "open"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.md").write_text(name)
    (tmp_path / "dangling.md").symlink_to("nowhere.md")
    (tmp_path / "loop.md").symlink_to("loop.md")
    os.mkfifo(tmp_path / "pipe.txt")
    scandir, denied = os.scandir, PermissionError(13, "Permission denied", str(tmp_path / "closed"))

    def scan(path: str) -> object:
        if Path(path).name == "closed":
            raise denied
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    monkeypatch.setattr(os, "access", lambda path, _: Path(path).name != "listed")
    found, left = find_documents(tmp_path)
    assert found == [tmp_path / "open" / "a.md"]
    assert all(one.is_fault for one in left)
    kinds = {"closed": "cannot be opened: Permission denied", "listed": "nothing in it can be opened"}
    kinds |= dict.fromkeys(("dangling.md", "loop.md", "pipe.txt"), "no file, or one that may not be opened")
    reasons = sorted(one.reason.removeprefix(f"{tmp_path}/") for one in left)
    assert [reason.split(". ")[0] for reason in reasons] == sorted(f"{name}: {kind}" for name, kind in kinds.items())


def test_a_source_is_the_path_from_here_or_from_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home" / "here").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "home" / "here")
    given = ["a.md", "./b/../a.md", "../a.md", str(tmp_path / "a.md")]
    assert [source_of(Path(path)) for path in given] == ["a.md", "a.md", "~/a.md", str(tmp_path / "a.md")]


def test_a_source_is_named_by_its_end() -> None:
    sources = ["a/README.md", "b/README.md", "xREADME.md", "notes", "a/README.md"]
    assert matching("README.md", sources) == ["a/README.md", "b/README.md"]
    assert matching("b/README.md", sources) == ["b/README.md"]
    assert matching("README.md", [*sources, "README.md"]) == ["README.md"]
    assert matching("absent.md", sources) == []


def test_lines_of_a_page_are_joined_where_its_layout_broke_them() -> None:
    page = "A heading\nA line that is as long as a line can\nbe, and its end.\nA line that is as long as a line \n\nEnd"
    joined = (
        "A heading\nA line that is as long as a line can be, and its end.\nA line that is as long as a line\n\nEnd\n"
    )
    assert unwrap(page) == joined
