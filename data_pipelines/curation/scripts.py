"""Letters of Chinese, Japanese and Korean, as the inside of a regular expression's brackets.

Source: Scripts.txt of the Unicode Character Database (Han, Hiragana, Katakana, Hangul).
"""

HAN = "々\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Ideographs: the unified block, its extensions, compatibility ideographs, the iteration mark."""
KANA = "\u3041-\u3096\u309d\u309e\u30a1-\u30fa\u30fd\u30fe\u31f0-\u31ff\uff66-\uff6f\uff71-\uff9d"
"""Hiragana and katakana in full and half width, without ・ and ー, which Chinese texts have too."""
HANGUL = "\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3"
"""Korean syllables and their parts."""
