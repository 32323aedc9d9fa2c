// Applies what the live stream says has changed. Untouched parts keep their identity, so that only changed rows are
// drawn again.

/** [keys, value]: set the value there; [keys]: remove what is there. */
export type Operation = [(string | number)[], unknown?]

export function apply(value: unknown, operations: readonly Operation[]): unknown {
  return operations.reduce<unknown>((held, operation) => set(held, operation[0], 0, operation), value)
}

function set(held: unknown, keys: readonly (string | number)[], at: number, operation: Operation): unknown {
  const key = keys[at]
  if (key === undefined) return operation[1]
  if (Array.isArray(held)) {
    const copy = held.slice()
    copy[key as number] = set(copy[key as number], keys, at + 1, operation)
    return copy
  }
  const copy: Record<string, unknown> = { ...(held as Record<string, unknown>) }
  if (at === keys.length - 1 && operation.length === 1) delete copy[key]
  else copy[key] = set(copy[key], keys, at + 1, operation)
  return copy
}
