"""What the runs of these tests share."""

from robustx.evaluation import AttackSpec

ATTACKS = (AttackSpec("fgsm"), AttackSpec("bisection", {"steps": 3, "rounds": 3}))
EVIL = "<script>alert('x')</script><img src=x onerror=\"document.title='taken over'\">"
