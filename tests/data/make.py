"""Makes the small files that the curate-only recipes run on.

    python tests/data/make.py

``crawl/``: pages as a web crawl holds them (the documentation strings of Python's standard
library, PSF licence, as HTML with navigation, footers, mirrors and pages in other
languages).  ``handbook/``: a made-up company's documents, with people's data that must not
reach a model.  The outcome is committed; the same Python makes the same bytes.
"""

from __future__ import annotations

import gzip
import html
import importlib
import inspect
import io
import json
import shutil
from pathlib import Path

HERE = Path(__file__).parent
MODULES = [
    "argparse",
    "asyncio.events",
    "bisect",
    "calendar",
    "collections",
    "concurrent.futures",
    "configparser",
    "contextlib",
    "copy",
    "csv",
    "datetime",
    "decimal",
    "difflib",
    "doctest",
    "email.message",
    "enum",
    "fractions",
    "functools",
    "gettext",
    "heapq",
    "http.client",
    "http.cookiejar",
    "imaplib",
    "inspect",
    "json",
    "locale",
    "logging.handlers",
    "lzma",
    "optparse",
    "pathlib",
    "pdb",
    "pickle",
    "platform",
    "random",
    "secrets",
    "selectors",
    "shelve",
    "shlex",
    "smtplib",
    "socket",
    "socketserver",
    "statistics",
    "string",
    "subprocess",
    "tarfile",
    "tempfile",
    "textwrap",
    "threading",
    "timeit",
    "tokenize",
    "traceback",
    "turtle",
    "types",
    "typing",
    "unittest",
    "urllib.request",
    "uuid",
    "wsgiref.simple_server",
    "xml.dom.minidom",
    "xmlrpc.client",
    "zipfile",
]
GERMAN = (
    "Der Stadtrat traf sich am Dienstag, um über die neue Brücke über den Fluss zu sprechen. Die meisten, die gekommen "
    "waren, sprachen sich dafür aus. Der Bau wird nach Angaben der Bürgermeisterin drei Jahre dauern und vom Land "
    "bezahlt werden. Für die Fähre, die seit mehr als hundert Jahren an dieser Stelle verkehrt, wird es dann keinen "
    "Bedarf mehr geben. Der Fährmann, dessen Vater und Großvater schon dort gearbeitet haben, will im Frühjahr aufhören."
)
FRENCH = (
    "Le conseil municipal s'est réuni mardi pour parler du nouveau pont sur la rivière. La plupart de ceux qui étaient "
    "venus y étaient favorables. La construction durera trois ans, selon la maire, et sera payée par la région. Le bac, "
    "qui traverse à cet endroit depuis plus de cent ans, ne sera alors plus nécessaire. Le passeur, dont le père et le "
    "grand-père y travaillaient déjà, veut s'arrêter au printemps prochain et ouvrir une petite auberge au bord de l'eau."
)
NAVIGATION = "<nav><a href='/'>Home</a> <a href='/news'>News</a> <a href='/about'>About us</a></nav>"
FOOTER = "<footer><p>Privacy policy</p><p>Terms of use</p><p>This site uses cookies.</p></footer>"


def page(title: str, paragraphs: list[str], language: str = "en") -> bytes:
    body = "".join(f"<p>{html.escape(text)}</p>" for text in paragraphs)
    return (
        f"<!doctype html><html lang='{language}'><head><title>{html.escape(title)}</title>"
        f"<meta charset='utf-8'></head><body>{NAVIGATION}<main><h1>{html.escape(title)}</h1>{body}</main>{FOOTER}"
        "</body></html>"
    ).encode()


def prose() -> list[tuple[str, list[str]]]:
    """(title, paragraphs) of the standard library's longer documentation strings."""
    found = []
    for name in MODULES:
        module = importlib.import_module(name)
        objects = [(name, module)] + [
            (f"{name}.{inner}", value)
            for inner, value in sorted(vars(module).items())
            if not inner.startswith("_") and getattr(value, "__module__", None) == name and callable(value)
        ]
        for title, value in objects:
            text = inspect.cleandoc(value.__doc__ or "") if isinstance(value.__doc__, str) else ""
            paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
            paragraphs = [part for part in paragraphs if len(part.split()) > 12 and ">>>" not in part]
            if sum(len(part.split()) for part in paragraphs) > 70:
                found.append((title, paragraphs))
    return found


def write_crawl(folder: Path) -> None:
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    pages = [
        (f"https://docs.example.org/{n}", "200 OK", "text/html", page(*p)) for n, p in enumerate(prose())
    ]
    mirrored = [("https://mirror.example.net" + url[24:], *rest) for url, *rest in pages[::9]]
    edited = [
        (f"https://blog.example.com/{n}", "200 OK", "text/html", body.replace(b" the ", b" our ", 2))
        for n, (_, _, _, body) in enumerate(pages[4::11])
    ]
    others = [
        ("https://zeitung.example.de/bruecke", "200 OK", "text/html; charset=utf-8", page("Die Brücke", [GERMAN, GERMAN.replace("Brücke", "Schule")], "de")),
        ("https://journal.example.fr/pont", "200 OK", "text/html", page("Le pont", [FRENCH, FRENCH.replace("pont", "port")], "fr").decode().encode("latin-1")),
        ("https://docs.example.org/gone", "404 Not Found", "text/html", page("Gone", ["Nothing here."])),
        ("https://docs.example.org/logo.png", "200 OK", "image/png", b"\x89PNG\r\n\x1a\n"),
        ("https://spam.example.org/", "200 OK", "text/html", page("Cheap", ["buy cheap shoes of the best of the day and the " * 60])),
        ("https://docs.example.org/menu", "200 OK", "text/html", page("Menu", [])),
    ]  # fmt: skip
    out = io.BytesIO()
    writer = WARCWriter(out, gzip=False)
    for number, (url, status, kind, body) in enumerate(pages + mirrored + edited + others):
        headers = StatusAndHeaders(status, [("Content-Type", kind)], protocol="HTTP/1.1")
        record = writer.create_warc_record(
            url, "response", payload=io.BytesIO(body), http_headers=headers,
            warc_headers_dict={"WARC-Date": "2026-11-20T00:00:00Z", "WARC-Record-ID": f"<urn:uuid:{number:032x}>"},
        )  # fmt: skip
        writer.write_record(record)
    folder.mkdir(parents=True)
    (folder / "crawl.warc.gz").write_bytes(gzip.compress(out.getvalue(), mtime=0))


HANDBOOK = {
    "onboarding.md": """# Your first week

Welcome to Northwind Ferries. On Monday you meet your team, get your laptop and your badge at the front desk, and set up
your accounts together with a colleague. Everything that you need to know about the timetable system stands in the
manual on the shared drive; read the first two chapters before Wednesday.

If something does not work, write to helpdesk@northwind-ferries.example.org or call +44 20 7946 0958 between eight and
five. For questions about your contract ask Maria in the office next to the kitchen.
""",
    "expenses.md": """# How to claim travel expenses

Book trains and hotels through the portal whenever you can, because the company then pays at once and you have nothing to
claim. For everything else keep the receipt, take a photograph of it and upload it within thirty days. Meals are paid up
to the limit for the country that you travel to.

The money comes with the next month's salary. Should it not arrive, check that your account number is right; the form
needs it in the long form, as in GB82 WEST 1234 5698 7654 32, and without a mistake in it.
""",
    "safety/fog.md": """# Sailing in fog

The master decides whether a ferry leaves in fog. Below a visibility of one kilometre a second lookout stands on the
bridge, the radar is on both ranges, and the speed is no more than what allows stopping within half the distance that can
be seen. The horn gives one long sound every two minutes.

When visibility falls below two hundred metres no ferry leaves. Passengers are told at the pier and by message, and may
change their booking without a fee. The duty manager decides about replacement buses.
""",
    "safety/fog-copy.md": "",
    "it/servers.md": """# Where our servers are

The booking system runs on two machines in the cellar of the head office and on one at the harbour. The public address of
the booking page is 81.2.69.142; inside the house use 10.0.0.12, which is quicker. Backups run at night and are kept for
ninety days, and once a month somebody restores one to see that it works.

The old deployment script still holds the key AKIAIOSFODNN7EXAMPLE, which must be taken out before the script is shared.
""",
    "it/vpn.txt": """Working from home: start the tunnel before you open the mail program, otherwise the mail program asks for
your password again and again. The tunnel needs the code from your telephone. If you have lost the telephone, the helpdesk
can let you in for one day after a video call. Never send the code to anybody, the helpdesk will not ask for it.
""",
    "menu.txt": "Soup\nFish\nCake\n",
}


def write_handbook(folder: Path) -> None:
    texts = dict(HANDBOOK)
    texts["safety/fog-copy.md"] = texts["safety/fog.md"].replace(
        "Passengers are told", "The passengers are told"
    )
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    questions = [
        (
            "May a ferry leave in fog?",
            "The master decides; below two hundred metres of visibility none leaves.",
        ),
        ("How soon must I upload a receipt?", "Within thirty days."),
        ("Where do I get my badge?", "At the front desk, on your first day."),
        ("Who can let me in without my telephone?", "The helpdesk, for one day, after a video call."),
    ]
    with open(folder / "faq.jsonl", "w", encoding="utf-8") as handle:
        for question, answer in questions:
            text = f"{question}\n\n{answer}"
            handle.write(json.dumps({"text": text, "title": question}) + "\n")


if __name__ == "__main__":
    for name, write in (("crawl", write_crawl), ("handbook", write_handbook)):
        shutil.rmtree(HERE / name, ignore_errors=True)
        write(HERE / name)
