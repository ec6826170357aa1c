# make check    lint, formatting, types, words, and the documentation site
# make docs     builds the documentation site: open site/index.html
# make figures  draws the figures of the documentation
# make test     the first tier of the tests, for every change
# make test-all all tests, doctests included (about 50 minutes on two cores)
# make bench    speed of encryption, bytes of messages, cost of codecs on this machine
# make speed    start-up; a round beside bare PyTorch, a stock Flower app and pfl-research; many clients
# make attacks  what a key withstands: the attacks of docs/trust.md (about twenty minutes)
# make trust    the table of docs/trust.md: all modes in configs/trust, and their audits
# make audit    known weaknesses of installed packages, if pip-audit is installed and gets an answer
# make chaos    a hundred runs that are killed, cut and starved at random moments (an hour)
# make table    the figures of the README: five seeds of each setting (about twenty minutes)
# make picture  the picture of the README: four runs
# make tables   which tables of the pages are older than the code that makes them

.PHONY: attacks trust chaos check docs figures test test-all bench speed audit table tables picture

check:
	python -m ruff check .
	python -m ruff format --check .
	python -m mypy
	python -m codespell_lib
	python -m tests.words
	$(MAKE) docs

docs:
	NO_MKDOCS_2_WARNING=1 python -m mkdocs build --strict

figures:
	python -m website.figures

test:
	python -m pytest -m "not slow"

test-all:
	python -m pytest

bench:
	python benchmarks/encryption.py
	python benchmarks/message_bytes.py
	python benchmarks/codec_cost.py

speed:
	python benchmarks/speed/start_up.py
	python benchmarks/speed/compare.py
	python benchmarks/speed/scale.py
	python benchmarks/speed/cohort.py
	python benchmarks/speed/features.py
	python benchmarks/speed/worker_memory.py
	python benchmarks/speed/method_memory.py

trust:
	python -m benchmarks.attacks.trust

attacks:
	python -m benchmarks.attacks ciphertext
	python -m benchmarks.attacks embedding
	python -m benchmarks.attacks uploads --rounds 1 5 --keys 2
	python -m benchmarks.attacks image --keys 5

audit:
	.ci/audit

chaos:
	python -m tests.chaos --runs 100

table:
	python simulate.py --config configs/grids/default_job.yaml

picture:
	python -m benchmarks.picture --out docs/picture.png

tables:
	python -m benchmarks.tables --check
