"""Hooks of the documentation site: links to files of the repository that are no pages become plain names.

On the site of a code host these links open the file; the built site has only the pages.
"""

from __future__ import annotations

import posixpath
import re
from typing import Any

_LINK = re.compile(r"\[(?P<text>[^\]]+)\]\((?P<path>[^)#:\s]+)\)")


def on_page_markdown(markdown: str, *, page: Any, files: Any, **_: Any) -> str:
    """Return the Markdown of a page whose links all lead to pages or files of the site."""
    folder = posixpath.dirname(page.file.src_uri)

    def plain(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match["path"]))
        if files.get_file_from_path(target) is not None:
            return match[0]
        name = target.removeprefix("../") if target.startswith("../") else f"docs/{target}"
        text = match["text"].strip("`")
        return f"`{name}`" if text in name else f"{match['text']} (`{name}`)"

    # Code blocks keep what looks like a link.
    parts = re.split(r"(^```.*?^```|^(?: {4}|\t)[^\n]*)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if index % 2 else _LINK.sub(plain, part) for index, part in enumerate(parts))
