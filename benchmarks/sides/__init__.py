"""The tools that the curation benchmark runs beside each other, one process each.

Every side reads shards of JSONL (``{"id", "text"}``), does the work that it is told,
writes what is left, and prints one line of JSON: ``tool``, ``version``, ``documents_in``,
``documents_out``, ``seconds`` (of the work, without start and imports) and
``kept`` (SHA-256 of the sorted ids that are left).
"""
