"""Components that are small and valid, and cost minutes and gigabytes to compile."""


def costly(blocks: int) -> str:
    """Nested blocks with jumps from each to every outer one, and a local for each.

    The optimizer has to say for every pair of blocks what each local is there: 150 blocks (15 KB
    of Wasm) take 3 s and 150 MiB, 220 (34 KB) take 12 s and 400 MiB.
    """
    labels = [f"$b{number}" for number in range(blocks)]
    code = [f"(block {label}" for label in reversed(labels)]
    code.append(f"(br_table {' '.join(labels)} (local.get 0))")
    for number in range(blocks):
        local, first, second = (
            1 + factor % blocks for factor in (number, 7 * number, 3 * number + 1)
        )
        code.append(")")
        code.append(f"(local.set {local} (i32.add (local.get {first}) (local.get {second})))")
        if number % 2:
            code.append(f"(br_if $top (local.get {local}))")
        if outer := labels[number + 1 :]:
            code.append(f"(br_table {' '.join(outer)} (local.get {local}))")
    return f"""
    (component (core module $module (func (export "f") (param i32)
      (local {"i32 " * blocks}) (loop $top {" ".join(code)}))))
    """
