package wasmhost

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"time"

	"github.com/tetratelabs/wazero/api"

	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/policy/guest"
	"github.com/penstock/penstock/wasmhost/meter"
)

// budget.go: how much a guest may compute and wait, and how it is stopped.
//
// The code of a guest carries a meter (package meter): it counts fuel down and calls tick when
// there is none left. The fuel is given in slices of some sixty microseconds. A call that ends
// within its first slice, as nearly all do, costs the host no look at a clock; it is charged
// what its fuel is worth by what was measured of the filter before; where that seems to be odd,
// the next calls are clocked from their beginning. From the first tick on, CPU time is what the
// system says the thread has used: a loaded machine must not fail a filter that is healthy. At
// each tick the guest also makes way for others. It is stopped by a panic, which wazero turns
// into the error of the call.

const (
	sliceTime  = 60 * time.Microsecond
	minSlice   = 500                    // units of fuel: a tick costs the host a microsecond
	maxSlice   = 4 << 20                // units: what is worth less than this is worth measuring again
	firstSlice = 512 << 10              // units: of the first slice, when nobody looks yet: few instructions are so dear that it takes long
	startRate  = 1024 / 2               // of a filter nothing is known of
	minRate    = 1024 / 64              //
	maxRate    = 1024 * 1000            //
	learnFrom  = 2 * minSlice           // units: shorter runs say more about the clock
	oddly      = 500 * time.Microsecond // more than fuel says: the next calls are looked at
	oddCalls   = 16                     // as many
	perOctet   = 8                      // octets of the host's work that cost a unit of fuel
	fewOctets  = 256                    // octets that are charged together with the next
	perCall    = 2 << 10                // octets that a call of the host stands for where the clock is looked at
	lookEvery  = 64 << 10               // octets
	bootWall   = 10                     // times its CPU time
	maxWall    = time.Minute            //
)

// Limits bound what a filter may use. The zero value of each field means its default.
type Limits struct {
	// Memory is the most linear memory of one instance, in octets. Default 16 MiB, from
	// 64 KiB to 64 MiB.
	Memory int64
	// Stack is how deeply its calls may be nested, in octets as package meter weighs them.
	// Default and most meter.MaxDepth, 512 KiB; at least 16 KiB.
	Stack int64
	// LogLines is how many lines it may log at one hook. Default 32, at most 1000.
	LogLines int
	// SessionValues is the most octets of what it keeps with sess_set. Default 16 KiB, at
	// most 1 MiB.
	SessionValues int64
	// CPU is the CPU time of one call from connect to data, of reset and close, and at the
	// stages of mail on its way out. Default
	// 2 ms, at most 500 ms.
	CPU time.Duration
	// CPUMessage and CPUPerMiB, for each MiB of the message, are together the CPU time of
	// one call with a message: headers, chunk and message. Default 20 ms, at most 500 ms,
	// and 10 ms, at most 500 ms.
	CPUMessage, CPUPerMiB time.Duration
	// CPUSession is the CPU time of all calls in one transaction, and of all outside of
	// transactions; that of a message comes on top. Default 200 ms, at most 5 s.
	CPUSession time.Duration
	// Wall is the longest time of one call, waiting for others included; waiting for the
	// processor is not. Default 5 s, at most 1 min.
	Wall time.Duration
}

// MaxMessageCPU is the most CPU time of one call with a message, whatever its size.
const MaxMessageCPU = 10 * time.Second

const (
	defaultMemory     = 16 << 20
	defaultCPU        = 2 * time.Millisecond
	defaultCPUMessage = 20 * time.Millisecond
	defaultCPUPerMiB  = 10 * time.Millisecond
	defaultCPUSession = 200 * time.Millisecond
	defaultWall       = 5 * time.Second
	maxCPU            = 500 * time.Millisecond
	maxCPUSession     = 5 * time.Second
	minStack          = 16 << 10
	maxLogLines       = 1000
	maxSessionValues  = 1 << 20
)

// Validate returns every problem, joined.
func (l Limits) Validate() error {
	var errs []error
	if l.Memory != 0 && (l.Memory < pageSize || l.Memory > maxPages*pageSize) {
		errs = append(errs, fmt.Errorf("memory: %d octets, want %d to %d", l.Memory, pageSize, maxPages*pageSize))
	}
	for _, n := range []struct {
		name               string
		value, least, most int64
	}{
		{"stack", l.Stack, minStack, meter.MaxDepth}, {"log lines", int64(l.LogLines), 1, maxLogLines},
		{"session values", l.SessionValues, 1, maxSessionValues},
	} {
		if n.value != 0 && (n.value < n.least || n.value > n.most) {
			errs = append(errs, fmt.Errorf("%s: %d, want %d to %d", n.name, n.value, n.least, n.most))
		}
	}
	for _, d := range []struct {
		name        string
		value, most time.Duration
	}{
		{"cpu", l.CPU, maxCPU}, {"cpu_message", l.CPUMessage, maxCPU}, {"cpu_per_mib", l.CPUPerMiB, maxCPU},
		{"cpu_session", l.CPUSession, maxCPUSession}, {"wall", l.Wall, maxWall},
	} {
		if d.value < 0 || d.value > d.most {
			errs = append(errs, fmt.Errorf("%s: %v, want at most %v", d.name, d.value, d.most))
		}
	}
	return errors.Join(errs...)
}

// messageCPU is the CPU time of one call with a message of size octets. All limits are set.
func (l *Limits) messageCPU(size int64) time.Duration {
	return min(l.CPUMessage+time.Duration(float64(l.CPUPerMiB)*float64(size)/(1<<20)), MaxMessageCPU)
}

// withDefaults fills in what is zero.
func (l Limits) withDefaults() Limits {
	fill := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	if l.Memory == 0 {
		l.Memory = defaultMemory
	}
	if l.Stack == 0 {
		l.Stack = meter.MaxDepth
	}
	fill(&l.CPU, defaultCPU)
	fill(&l.CPUMessage, defaultCPUMessage)
	fill(&l.CPUPerMiB, defaultCPUPerMiB)
	fill(&l.CPUSession, defaultCPUSession)
	fill(&l.Wall, defaultWall)
	return l
}

// budget is what one call may use.
type budget struct {
	cpu   time.Duration // of the call
	rest  time.Duration // of the transaction
	total time.Duration // of which rest is left
	wall  time.Duration
}

// bootBudget is that of a start.
func (f *Filter) bootBudget() budget {
	return budget{cpu: f.opts.Boot, rest: f.opts.Boot, total: f.opts.Boot, wall: min(bootWall*f.opts.Boot, maxWall)}
}

// purse is what a session has used of its budgets.
type purse struct {
	seq   uint64        // of the transaction; 0 outside
	spent time.Duration // in it
}

// budgetAt returns what a call about e may use.
func (s *session) budgetAt(e *policy.Event) budget {
	l := &s.filter.opts.Limits
	b := budget{cpu: l.CPU, total: l.CPUSession, wall: l.Wall}
	seq := uint64(0)
	if e.Tx != nil {
		seq = e.Tx.Seq
		if e.Stage >= policy.StageHeaders && e.Stage <= policy.StageMessage {
			b.cpu = l.messageCPU(sizeOf(e))
			b.total += b.cpu
		}
	}
	if seq != s.purse.seq {
		s.purse = purse{seq: seq}
	}
	b.rest = max(b.total-s.purse.spent, 0)
	return b
}

// sizeOf is how much of the message is there.
func sizeOf(e *policy.Event) int64 {
	switch {
	case e.Chunk != nil:
		return e.Chunk.Offset + int64(len(e.Chunk.Data))
	case e.Tx.Message != nil:
		return e.Tx.Message.Size()
	}
	return 0
}

// run is what is known of the call that an instance is in.
type run struct {
	budget
	cpuTime
	given   int64         // fuel at the last reading
	owed    int64         // octets of the host's work that are not charged yet, less than fewOctets
	hosted  int64         // octets of the host's work since the last look at a clock
	hosts   bool          // there was so much of it since the last reading
	looked  time.Duration // when that look was, the first of a slice; 0: there was none
	clocked bool          // what follows was read
	begun   bool          // it is known when it began
	placed  bool          // it has a place at the gate
	thread  int           // 0: not known
	mark    time.Duration // CPU time of the thread
	at      time.Duration // on the wall
	lapsed  time.Duration // that counts
}

// cpuTime is what a call has used.
type cpuTime struct {
	spent  time.Duration
	ticks  int64
	waits  int64
	waited time.Duration
}

// begin readies the instance for guest code. asked is when somebody began to wait for it.
func (in *instance) begin(ctx context.Context, host guest.Host, b budget, asked time.Time) {
	in.ctx.Context, in.host, in.used = ctx, host, true
	in.run = run{} // by itself: the rest would be put together elsewhere and copied
	in.run.budget, in.run.at = b, asked.Sub(in.filter.module.rt.epoch)
	in.fuel.Set(uint64(in.slice()))
	if w := in.filter.watch.Load(); w != 0 {
		in.watch(w)
	}
}

// watch is for calls of a filter that seems to take longer than its fuel says. w tells how
// closely: see Filter.watch.
func (in *instance) watch(w int64) {
	if w > 0 {
		in.filter.watch.Add(-1)
		in.mark()
		in.run.clocked = true
		return
	}
	in.filter.watch.Add(1)
	in.run.at, in.run.begun = in.filter.module.rt.now(), true
}

// end returns what guest code has used since begin.
func (in *instance) end() cpuTime {
	fuel := int64(in.fuel.Get())
	if !in.run.clocked {
		in.run.spent = in.worth(in.run.given - fuel)
		in.doubt(in.run.given - fuel)
	} else {
		in.read(fuel)
	}
	in.leaveGate()
	in.ctx.Context, in.host = nil, nil
	return in.run.cpuTime
}

// doubt looks at what a call took that ended within its first slice, if it was not short:
// else a guest whose instructions are dear, for each takes a page of memory from the system or
// misses all caches, would never be found out. Time since the chain was asked is doubtful, for
// others may have taken it: then it is looked at when the next calls begin. If theirs is too
// long, the calls after them are charged by the clock of the thread.
func (in *instance) doubt(units int64) {
	if units < learnFrom || in.filter.module.rt.now()-in.run.at <= in.run.spent+oddly {
		return
	}
	if in.run.begun {
		in.filter.watch.Store(oddCalls)
	} else {
		in.filter.watch.CompareAndSwap(0, -oddCalls)
	}
}

// slice returns the fuel until the next look at the clock: less if the budget ends before.
func (in *instance) slice() int64 {
	if d := min(in.run.cpu, in.run.rest) - in.run.spent; d >= 2*sliceTime {
		in.run.given = min(in.filter.whole.Load(), firstSlice<<min(in.run.ticks, 8))
	} else { // the end is neared in smaller and smaller steps: what fuel is worth is a guess
		in.run.given = fuelFor(d/2, in.filter.rate.Load())
	}
	return in.run.given
}

// fuelFor returns the fuel that is worth d.
func fuelFor(d time.Duration, rate int64) int64 {
	return min(max(int64(d)<<10/rate, minSlice), maxSlice)
}

// worth returns the time that units of fuel stand for.
func (in *instance) worth(units int64) time.Duration {
	return time.Duration(max(units, 0) * in.filter.rate.Load() >> 10)
}

// learn takes into account that units of fuel took d. Filters differ, and so do machines.
// What is dear is believed at once, what is cheap only bit by bit: a guest has a say in both.
func (f *Filter) learn(units int64, d time.Duration) {
	// Where slices have become very short, they have to do.
	if units < min(learnFrom, f.whole.Load()) || d <= 0 {
		return
	}
	old := f.rate.Load()
	seen := min(max(int64(d)<<10/units, minRate), maxRate)
	if seen < old {
		seen = old + (seen-old)/8
	}
	f.setRate(max(seen, minRate)) // one that gets lost is no harm
}

func (f *Filter) setRate(rate int64) {
	f.rate.Store(rate)
	f.whole.Store(fuelFor(sliceTime, rate))
}

// read charges what was used since the last reading. A reading that follows must mark.
func (in *instance) read(fuel int64) {
	r := &in.run
	units := r.given - fuel
	used := in.worth(units)
	wall := in.filter.module.rt.now() - r.at
	given := r.given
	r.given = fuel
	if !r.clocked {
		r.clocked = true
		// Nobody may be stopped because of a guess that is wrong. Fuel beyond the slice is for
		// work on memory at one go, of which little is known: the slice counts.
		used = min(in.worth(min(units, given)), max(wall, 0))
		r.spent, r.lapsed = r.spent+used, r.lapsed+used
		return
	}
	cpu, thread := threadCPU()
	switch {
	case thread == 0: // there is no such clock
		used = wall
	case thread == r.thread:
		// The guest itself cannot change threads; the host's functions, which it calls, can.
		// That they came back to the same one shows on the wall at the most.
		used = cpu - r.mark
		if !r.hosts { // else it was the host that took its time
			in.filter.learn(units, min(used, wall))
		}
	}
	r.spent += min(max(used, 0), wall)
	r.lapsed += wall
}

// mark is where the next reading begins.
func (in *instance) mark() {
	in.run.at = in.filter.module.rt.now()
	in.run.looked, in.run.hosts = in.run.at, false
	in.run.mark, in.run.thread = threadCPU()
}

// over returns an error if the guest must be stopped.
func (in *instance) over() error {
	r := &in.run
	switch {
	case in.filter.module.rt.closed.Load():
		return errClosed
	case in.ctx.Context.Err() != nil:
		return ended(in.ctx.Context)
	case r.spent >= r.cpu:
		return overCPU(r.cpu)
	case r.spent >= r.rest:
		return overSession(r.total)
	case r.lapsed >= r.wall:
		return overWall(r.wall)
	}
	return nil
}

// refuel charges what was used, lets others compute, and returns the fuel to go on with; or
// an error, if there is none.
func (in *instance) refuel(fuel int64) (int64, error) {
	in.read(fuel)
	in.run.ticks++
	in.deep = true // a stack that grew large took its time
	err := in.over()
	if err == nil {
		err = in.makeWay()
	}
	in.mark() // whatever comes of it: the guest may be asked again, and its end is a reading
	if err != nil {
		return 0, err
	}
	return in.slice(), nil
}

// makeWay lets others compute, guests and the gateway itself.
func (in *instance) makeWay() error {
	rt, r := in.filter.module.rt, &in.run
	enter := rt.gate.enter
	if r.placed {
		enter = rt.gate.again
	}
	err := enter(in.ctx.Context, rt.ending.Done(), in.turn, r.wall)
	if r.placed = err == nil; err != nil {
		return err
	}
	runtime.Gosched()
	return nil
}

func (in *instance) leaveGate() {
	if in.run.placed {
		in.run.placed = false
		in.filter.module.rt.gate.leave()
	}
}

// tick is what the code of a guest calls when its fuel is used up, or when its calls are
// nested too deeply.
func (in *instance) tick(fuel int64) int64 {
	if fuel == math.MinInt64 {
		in.deep = true
		panic(errStack)
	}
	fuel, err := in.refuel(fuel)
	if err != nil {
		panic(err)
	}
	return fuel
}

// addTick makes tick known to the runtime.
func (r *Runtime) addTick(ctx context.Context) error {
	b := r.wz.NewHostModuleBuilder(meter.TickModule)
	b.NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(func(ctx context.Context, _ api.Module, stack []uint64) {
		stack[0] = uint64(caller(ctx).tick(int64(stack[0])))
	}), []api.ValueType{i64}, []api.ValueType{i64}).Export(meter.TickName)
	if _, err := b.Instantiate(ctx); err != nil {
		return fmt.Errorf("wasmhost: %s: %w", meter.TickModule, err)
	}
	return nil
}

// charge is for functions that the guest calls: it takes the fuel for work of the host on
// so many octets, before it is done. False means that the guest has none left: it is
// stopped when it goes on.
func (in *instance) charge(octets int64) bool {
	in.run.owed += octets
	if in.run.owed < fewOctets {
		return true // the meter is dearer to reach than that
	}
	octets, in.run.owed = in.run.owed, 0
	fuel := int64(in.fuel.Get()) - octets/perOctet
	ok := true
	if in.lapse(octets) || fuel < 0 {
		next, err := in.refuel(fuel)
		if ok = err == nil; ok {
			fuel = next
		}
	}
	in.fuel.Set(uint64(fuel))
	return ok
}

// called is where a call of the host begins: the guest is stopped there if it has had its
// time.
func (in *instance) called() {
	if !in.lapse(perCall) {
		return
	}
	fuel, err := in.refuel(int64(in.fuel.Get()))
	if err != nil {
		panic(err)
	}
	in.fuel.Set(uint64(fuel))
}

// lapse counts work of the host, and looks at the clock now and then: it tells whether the
// slice is over by the clock, whatever fuel is left. What a call of the host takes has
// nothing to do with what fuel is worth to the filter, so a slice could be a second of them.
func (in *instance) lapse(octets int64) bool {
	if in.run.hosted += octets; in.run.hosted < lookEvery {
		return false
	}
	in.run.hosted, in.run.hosts = 0, true
	now := in.filter.module.rt.now()
	if in.run.looked == 0 { // when the call began is not known: others were asked before
		in.run.looked = now
	}
	return now-in.run.looked >= 2*sliceTime
}

// outside is for functions that the guest calls and that wait for something: f must return
// when its context is done. Meanwhile the guest computes nothing and has no place at the
// gate; its time on the wall goes on.
func (in *instance) outside(f func(ctx context.Context)) {
	r, rt := &in.run, in.filter.module.rt
	in.read(int64(in.fuel.Get()))
	placed := r.placed
	in.leaveGate()
	start := rt.now()
	ctx, cancel := context.WithTimeout(in.ctx.Context, r.wall-r.lapsed)
	leave := context.AfterFunc(rt.ending, cancel)
	f(ctx)
	leave()
	cancel()
	waited := rt.now() - start
	r.waits++
	r.waited += waited
	r.lapsed += waited
	err := in.over()
	if err == nil && placed {
		err = in.makeWay()
	}
	in.mark()
	if err != nil {
		panic(err)
	}
}
