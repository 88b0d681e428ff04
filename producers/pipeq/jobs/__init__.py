"""Jobs: many rows as one thing. Readers -> rows -> packs -> Redis; outcomes -> results, in order."""
