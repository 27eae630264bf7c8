#!/usr/bin/env python3
"""What words with corpus statistics reach: the baselines for swarm.embed.

    baseline.py CORPUS QUESTIONS HALF

Prints nearest-neighbour accuracy (chapter of the nearest section that is not
of the same page, within the half) and question ranks (over all sections), for
a random neighbour and for bag-of-words cosine: raw counts, and tf-idf with
sublinear tf and the idf of the very corpus, with no limit of dimensions.
"""
import csv
import math
import random
import re
import sys
from collections import Counter, defaultdict

csv.field_size_limit(1 << 30)


def read(path):
    with open(path, encoding='utf-8', newline='') as f:
        return [line.rstrip('\n').split('\t') for line in f]


def words(text):
    return Counter(re.findall(r'[^\W_]+', text.lower()))


def vectors(bags, idf):
    for bag in bags:
        v = {w: ((1 + math.log(c)) * idf.get(w, 0) if idf else c) for w, c in bag.items()}
        norm = math.sqrt(sum(x * x for x in v.values())) or 1
        yield {w: x / norm for w, x in v.items() if x}


def index(vecs):
    postings = defaultdict(list)
    for i, v in enumerate(vecs):
        for w, x in v.items():
            postings[w].append((i, x))
    return postings


def scores(query, postings, n):
    s = [0.0] * n
    for w, x in query.items():
        for i, y in postings.get(w, ()):
            s[i] += x * y
    return s


def nearest(rows, vecs):
    postings = index(vecs)
    right = 0
    for i, v in enumerate(vecs):
        s = scores(v, postings, len(rows))
        best = max((j for j in range(len(rows)) if rows[j][3] != rows[i][3]), key=s.__getitem__)
        right += rows[best][2] == rows[i][2]
    return right / len(rows)


def ranks(questions, rows, vecs, qvecs):
    postings = index(vecs)
    for (_, _, pages), q in zip(questions, qvecs):
        s = scores(q, postings, len(rows))
        best = max(s[i] for i in range(len(rows)) if rows[i][3] in pages.split())
        yield 1 + sum(x > best for x in s)


def main(corpus, questions, half):
    rows, asked = read(corpus), [q for q in read(questions) if q[0] == half]
    mine = [r for r in rows if r[1] == half]
    random.seed(1)
    picks = [(r, random.choice([o for o in mine if o[3] != r[3]])) for r in mine]
    print(f'random neighbour: nn {sum(a[2] == b[2] for a, b in picks) / len(picks):.3f}')

    bags = [words(r[4] + ' ' + r[5]) for r in rows]
    qbags = [words(q[1]) for q in asked]
    df = Counter(w for b in bags for w in b)
    for name, idf in (('counts', None), ('tf-idf', {w: math.log(len(rows) / c) for w, c in df.items()})):
        vecs, qvecs = list(vectors(bags, idf)), list(vectors(qbags, idf))
        nn = nearest(mine, [v for r, v in zip(rows, vecs) if r[1] == half])
        rk = list(ranks(asked, rows, vecs, qvecs))
        print(f'{name}: nn {nn:.3f}  hit1 {sum(r == 1 for r in rk)}/{len(rk)} hit5 {sum(r <= 5 for r in rk)} '
              f'mrr {sum(1 / r for r in rk) / len(rk):.3f}')


main(*sys.argv[1:])
