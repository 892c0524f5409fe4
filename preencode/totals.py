"""What a run has done, added up: the same few numbers for ten shards and for a hundred thousand."""

from dataclasses import dataclass

from preencode.shard import ShardReport


@dataclass(slots=True)
class Totals:
    """Sums over the reports of shards."""

    shards: int = 0
    indexed: int = 0
    encoded: int = 0
    rows: int = 0
    captions: int = 0
    tokens: int = 0
    encode_s: float = 0.0
    """Seconds in the encoder, over all actors."""
    needed_s: float = 0.0
    """Seconds that the same arithmetic takes as large matrix products, over all actors."""

    def add(self, report: ShardReport) -> None:
        """Count one shard."""
        self.shards += 1
        self.indexed += report.indexed
        self.encoded += report.encoded
        self.rows += report.rows
        self.captions += report.captions
        self.tokens += report.tokens
        self.encode_s += report.encode_s
        if report.matmul_rate:
            self.needed_s += report.flops / report.matmul_rate

    def rates(self, seconds: float) -> str:
        """Return what to tell beside a progress bar after `seconds` of work."""
        told = f"{self.rows:,} samples"
        if self.tokens:
            per_s = self.captions / seconds, self.tokens / seconds
            told += f"  {per_s[0]:,.0f} captions/s  {per_s[1]:,.0f} tokens/s"
        return told

    @property
    def utilization(self) -> float:
        """Model FLOP utilization: arithmetic of real tokens over what matrix products reach."""
        return self.needed_s / self.encode_s if self.encode_s else 0.0
