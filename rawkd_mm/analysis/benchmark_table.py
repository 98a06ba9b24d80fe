"""The table of what a benchmark has measured."""


def table(result: dict) -> str:
    """Make the table.

    Args:
        result (dict): What ``Benchmark.run`` gives.

    Returns:
        str: Lines of Markdown.
    """

    def number(value, digits=3):
        return '' if value is None else f'{value:.{digits}f}'

    versions = ', '.join(result['versions'].values())
    shape = ' x '.join(map(str, (result['batch'], result['channels'], *result['size'])))
    iterations, gpus = result['schedule_iterations'], result['schedule_gpus']
    lines = [
        f'{result["config"]}: {shape}, student in '
        f'{"mixed precision" if result["student_amp"] else "float32"}',
        f'{result["device"]}; {versions}',
        *result['notes'],
        *(
            f'{row["variant"]}: the teacher runs {row["teacher_settings"]}'
            for row in result['variants']
            if 'auto' in row['variant']
        ),
        '',
        '| variant | s/step | +- | teacher s | / MMRazor | / floor | peak MB | distill. loss | hours |',
        '|---|---|---|---|---|---|---|---|---|',
    ]
    for row in result['variants']:
        distilled = [v for k, v in row['losses'].items() if k.startswith('distill.')]
        cells = [
            row['variant'],
            number(row['seconds']),
            number(row['spread']),
            number(row['teacher_seconds']),
            number(row['ratio_to_mmrazor'], 2),
            number(row['ratio_to_floor'], 2),
            number(row['peak_megabytes'], 0),
            f'{sum(distilled):.5g}' if distilled else '',
            number(row['hours'], 1),
        ]
        lines.append('| ' + ' | '.join(cells) + ' |')
    clock = 'seconds of computing' if result['clock'] == 'cpu' else 'seconds'
    lines += [
        '',
        f'Median of {result["iters"]} rounds, in {clock}; +- half the range of their middle half.',
    ]
    if result['floor_seconds'] is not None:
        lines.append(
            f"Floor: {result['floor_seconds']:.3f} s, the student's step and the fastest of the "
            'teachers above.'
        )
    if iterations:
        lines.append(
            f'Hours: {iterations} iterations at this speed, on {gpus} devices at once with '
            'communication for nothing.'
        )
    return '\n'.join(lines)
