// The time, once a second, as the controller's clock has it: "3 s ago" must be right on a machine whose clock is wrong.

class Clock {
  now = $state(Date.now() / 1000)
  private offset = 0

  constructor() {
    setInterval(() => this.tick(), 1000)
  }

  /** Take over the controller's time (seconds since 1970). */
  set(now: number): void {
    this.offset = now - Date.now() / 1000
    this.tick()
  }

  private tick(): void {
    this.now = Date.now() / 1000 + this.offset
  }
}

export const clock = new Clock()
