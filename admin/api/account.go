package api

import "time"

// Accounts is what filters do and what that costs, since the start of the gateway.
type Accounts struct {
	// Filters begin with the one that computed most.
	Filters []FilterAccount `json:"filters"`
}

// FilterAccount is that of a filter, by its name in the configuration.
type FilterAccount struct {
	Name string `json:"name"`
	// Total is what all its versions did together, Versions those that run and the last few
	// that did.
	Total    VersionAccount   `json:"total"`
	Versions []VersionAccount `json:"versions"`
	// Broken are the hooks at which it is not asked now, for it failed too often.
	Broken []BrokenHook `json:"broken"`
}

// VersionAccount is that of one version of a filter. Times are in seconds.
type VersionAccount struct {
	// Digest is that of its module; empty in a total.
	Digest string    `json:"digest,omitempty"`
	Begun  time.Time `json:"begun"`
	// Ended is when it ran no more; absent if it runs.
	Ended *time.Time `json:"ended,omitempty"`
	// Calls, Failed and Time are the sums of all hooks, and CPU what it computed there.
	Calls  uint64  `json:"calls"`
	Failed uint64  `json:"failed"`
	Time   float64 `json:"time"`
	CPU    float64 `json:"cpu"`
	// Boot is what it computed to start.
	Boot float64 `json:"boot"`
	// Ticks is how often the host looked whether it computes for too long.
	Ticks int64 `json:"ticks"`
	// Waits is how often it waited for something outside, and Waited for how long.
	Waits  int64   `json:"waits"`
	Waited float64 `json:"waited"`
	// Memory is the most that one of its instances had, in octets.
	Memory int64 `json:"memory"`
	// Instances are there now; Made were made so far, Booted of them by running its start.
	Instances int64 `json:"instances"`
	Made      int64 `json:"made"`
	Booted    int64 `json:"booted"`
	// Resets is how often one was made as new, Discarded how many were thrown away.
	Resets    int64 `json:"resets"`
	Discarded int64 `json:"discarded"`
	// Hooks are those at which it was asked, in their order.
	Hooks []HookAccount `json:"hooks"`
}

// HookAccount is what a filter did at one hook. Times are in seconds.
type HookAccount struct {
	Hook  string `json:"hook"`
	Calls uint64 `json:"calls"`
	// Verdicts are the calls by answer; for one that failed, by what on_error made of it.
	Verdicts map[string]uint64 `json:"verdicts"`
	// Failures are by cause: trap, cpu, wall, memory, stack, guest, verdict, pool, load,
	// stopped or other.
	Failures map[string]uint64 `json:"failures"`
	// Broke is how often it was found broken, NotAsked how often on_broken answered.
	Broke    uint64 `json:"broke"`
	NotAsked uint64 `json:"not_asked"`
	// Edits are the changes that it made.
	Edits uint64 `json:"edits"`
	// CPU is what it computed, Time what the calls took, P50 and P99 of one call.
	CPU  float64 `json:"cpu"`
	Time float64 `json:"time"`
	P50  float64 `json:"p50"`
	P99  float64 `json:"p99"`
}

// BrokenHook is a hook at which a filter of a chain is broken.
type BrokenHook struct {
	Chain string    `json:"chain"`
	Hook  string    `json:"hook"`
	Since time.Time `json:"since"`
	// Of Calls within a minute, Failures failed, in sessions of clients from Networks.
	Calls    int `json:"calls"`
	Failures int `json:"failures"`
	Networks int `json:"networks"`
	// Cause and Error are of the last failure.
	Cause string `json:"cause"`
	Error string `json:"error"`
	// Probes were made since, the next is at NextProbe.
	Probes    int       `json:"probes"`
	NextProbe time.Time `json:"next_probe"`
}
