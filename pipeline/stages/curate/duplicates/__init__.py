"""Duplicates: which documents say the same, and which one of them stays.

Workers measure every document beside its shard (:mod:`.measures`); here the measures of
the whole corpus are compared from disk within a set amount of memory (:mod:`.bands`), the
alike are joined to clusters, one of each stays by the recipe's policy
(:mod:`.clusters`), and Curator's removal stage drops the others by their numbers.
"""

from pipeline.stages.curate.duplicates.clusters import Clusters, choose
from pipeline.stages.curate.duplicates.minhash import clusters, content_key, shingles, signatures

__all__ = ["Clusters", "choose", "clusters", "content_key", "shingles", "signatures"]
