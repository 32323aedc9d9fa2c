// Which words are good news, bad news, or work under way: one table for every pill in the console.

export type Kind = 'good' | 'warn' | 'bad' | 'busy' | 'idle'

const KINDS: Record<string, Kind> = {
  // devices
  online: 'good',
  late: 'warn',
  lost: 'bad',
  revoked: 'idle',
  // what a device says of a component, and of serving
  ready: 'good',
  active: 'good',
  starting: 'busy',
  down: 'bad',
  // builds and jobs
  published: 'good',
  accepted: 'idle',
  refused: 'warn',
  waiting: 'idle',
  running: 'busy',
  done: 'good',
  failed: 'bad',
  // stages
  PASSED: 'good',
  expired: 'warn',
  // rollouts
  PENDING: 'idle',
  RUNNING: 'busy',
  PAUSED: 'warn',
  SUCCEEDED: 'good',
  FAILED: 'bad',
  CANCELED: 'idle',
  SUPERSEDED: 'idle',
  ROLLING_BACK: 'warn',
  ROLLED_BACK: 'warn',
  // executions
  SKIPPED: 'good',
  INCONSISTENT: 'bad',
  REJECTED: 'bad',
  TIMED_OUT: 'bad',
  VERIFYING_ROLLBACK: 'warn',
  WAITING: 'idle',
  DEFERRED: 'idle',
  // gates
  go: 'good',
  hold: 'busy',
  back: 'bad',
  // commands
  sent: 'busy',
  answered: 'good',
  interrupted: 'warn',
}

/** An execution under way has many states: what is not in the table is work. */
export function kind(word: string): Kind {
  return KINDS[word] ?? (word === word.toUpperCase() ? 'busy' : 'idle')
}

/** ROLLED_BACK as "rolled back": states are shouted on the wire, not at people. */
export function spoken(word: string): string {
  return word.replaceAll('_', ' ').toLowerCase()
}

/** "model:digits" as "digits". */
export function componentName(component: string): string {
  return component.startsWith('model:') ? component.slice(6) : component
}
