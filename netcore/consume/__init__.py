"""Adapter to consumer: `cursor` remembers, `merger` orders, `subscription` follows."""
