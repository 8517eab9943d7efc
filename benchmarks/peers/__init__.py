"""Other published methods, written for this benchmark from their papers' formulas and calibrated on its own models.

The public packs carry tables that were fitted to models of full size at certain step counts, and rewritten forwards of
the ComfyUI of their day. Here each method is one policy: teacache.py, magcache.py, spectrum.py and foca.py over the
transformer blocks as one piece that can be run or left out (trunk.py), vde.py over a flow's velocity (velocity.py).
"""
