"""From an expression graph to source text: differentiate, lower, print, load.

Stages, input to output: `Graph` node → (`differentiate`) Jacobian nodes → (`lower`) `Program` →
(`skeletons`) text for a target → (`module`) imported Python module.
"""
