"""Reading the record: what was made of what (trace), what differs (compare), what rotted
(check), what nothing needs any more (gc).

Everything here rests on manifests, files and the store's layout alone; nothing writes but
``gc`` and ``check --quarantine``, and those only when asked to.
"""
