package wasmhost

import (
	"sync/atomic"
	"time"

	"github.com/penstock/penstock/policy"
)

// stats.go: what the host alone knows of a filter.

// Stats are figures of a Filter since it was made.
type Stats struct {
	// CPU is the guest's CPU time by stage, its start not included. Of calls shorter than a
	// slice it is an estimate.
	CPU map[policy.Stage]time.Duration
	// Boot is the CPU time of the start.
	Boot time.Duration
	// Ticks is how often guests used up a slice.
	Ticks int64
	// Waits is how often guests waited for something outside, and Waited for how long.
	Waits  int64
	Waited time.Duration
	// Memory is the most linear memory that an instance had, in octets.
	Memory int64
	// Live is how many instances there are, Made how many were made so far, Booted how many
	// of these by running the guest's start. Resets is how often one was made as new, and
	// Discarded how many were thrown away.
	Live, Made, Booted, Resets, Discarded int64
}

// stages is more than the highest stage.
const stages = 32

// counters are Stats as they are counted.
type counters struct {
	cpu                                                                       [stages]atomic.Int64
	boot, ticks, waits, waited, memory, live, made, booted, resets, discarded atomic.Int64
}

// add counts a call.
func (c *counters) add(stage policy.Stage, used cpuTime) {
	c.cpu[stage%stages].Add(int64(used.spent))
	if used.ticks > 0 {
		c.ticks.Add(used.ticks)
	}
	if used.waits > 0 {
		c.waits.Add(used.waits)
		c.waited.Add(int64(used.waited))
	}
}

// sawMemory notes the size of a memory.
func (c *counters) sawMemory(size int64) {
	for old := c.memory.Load(); size > old; old = c.memory.Load() {
		if c.memory.CompareAndSwap(old, size) {
			return
		}
	}
}

// Stats returns the filter's figures. It is safe for concurrent use.
func (f *Filter) Stats() Stats {
	c := &f.count
	s := Stats{
		CPU: make(map[policy.Stage]time.Duration), Boot: time.Duration(c.boot.Load()),
		Ticks: c.ticks.Load(), Waits: c.waits.Load(), Waited: time.Duration(c.waited.Load()), Memory: c.memory.Load(),
		Live: c.live.Load(), Made: c.made.Load(), Booted: c.booted.Load(), Resets: c.resets.Load(), Discarded: c.discarded.Load(),
	}
	for stage := range c.cpu {
		if d := c.cpu[stage].Load(); d > 0 {
			s.CPU[policy.Stage(stage)] = time.Duration(d)
		}
	}
	return s
}
