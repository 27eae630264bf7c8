#!/usr/bin/env python3
"""Make a labelled text set from the PostgreSQL manual: one row a section.

    corpus.py HTMLDIR > corpus.tsv        id  half  label  page  title  text

A section starts at a heading (h1, h2, h3) and ends at the next.  Its label is
what the page's navigation header names above it: the chapter, the appendix or
the part of the reference.  The half (0 tune, 1 report) comes from a hash of
the page's name, so that sections of one page are never in both.  Left out:
the release notes (each names every subject), the book index, tables of
contents, sections under 200 characters, and navigation.
"""
import hashlib
import os
import re
import sys
from html.parser import HTMLParser

SKIP_PAGES = re.compile(r'^(release|bookindex|index|legalnotice|biblio)')
VOID = {'br', 'hr', 'img', 'link', 'meta', 'input', 'col'}


class Page(HTMLParser):
    """Cuts a page into (title, text) sections and finds its chapter."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.sections = [['', []]]
        self.skip = 0           # depth inside navigation or a contents list
        self.heading = False
        self.nav = 0
        self.label = None
        self.in_th = False
        self.th = []
        self.in_body = False

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        cls = (attrs.get('class') or '').split()
        if tag == 'body':
            self.in_body = True
        if tag in VOID:
            return
        if self.skip:
            self.skip += 1
        elif tag == 'div' and ('navheader' in cls or 'navfooter' in cls or 'toc' in cls):
            self.skip = 1
            self.nav = 'navheader' in cls
        if tag == 'th' and self.nav:
            self.in_th = attrs.get('width') == '60%'
        elif tag in ('h1', 'h2', 'h3') and not self.skip:
            self.heading = True
            self.sections.append(['', []])

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if tag == 'th':
            if self.in_th:
                self.label = ' '.join(''.join(self.th).split())
            self.in_th = False
        if self.skip:
            self.skip -= 1
            if not self.skip:
                self.nav = 0
        if tag in ('h1', 'h2', 'h3'):
            self.heading = False

    def handle_data(self, data):
        if self.in_th:
            self.th.append(data)
        if self.skip or not self.in_body:
            return
        if self.heading:
            self.sections[-1][0] += data
        else:
            self.sections[-1][1].append(data)


def main(folder):
    pages = list(read_pages(folder))
    # A page under a section ("F.12. dblink") belongs to the section's chapter.
    chapters = {}
    for _, page in pages:
        named = re.match(r'(?:Chapter|Appendix) ([0-9A-Z]+)\. (.*)', page.label)
        if named:
            chapters[named[1]] = named[2]
    number = 0
    for name, page in pages:
        under = re.match(r'([0-9A-Z]+)\.[0-9.]+ ', page.label)
        label = re.sub(r'^(Chapter|Appendix|Part) [0-9A-Z]+\. ', '', page.label)
        if under and under[1] in chapters:
            label = chapters[under[1]]
        half = hashlib.md5(name.encode()).digest()[0] & 1
        top = ''
        for title, parts in page.sections:
            title = re.sub(r'^[0-9A-Z]+(\.[0-9]+)+\.\s*', '', ' '.join(title.split()))
            text = ' '.join(''.join(parts).split())
            top = top or title
            if title and len(text) >= 200:
                full = title if title == top else top + ': ' + title
                number += 1
                print(number, half, label, name[:-5], full, text, sep='\t')


def read_pages(folder):
    for name in sorted(os.listdir(folder)):
        if not name.endswith('.html') or SKIP_PAGES.match(name):
            continue
        page = Page()
        with open(os.path.join(folder, name), encoding='utf-8') as f:
            page.feed(f.read())
        if not page.label:
            continue
        yield name, page


main(sys.argv[1])
