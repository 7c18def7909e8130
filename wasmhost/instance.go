package wasmhost

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/tetratelabs/wazero/api"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/policy/guest"
	"github.com/penstock/penstock/wasmhost/meter"
)

// instance is a guest with its own memory. It is for one goroutine at a time: that of the
// session that has it, or of whoever took it out of the filter's pool.
type instance struct {
	filter *Filter
	mem    *memory
	mod    api.Module
	memory api.Memory // of mod
	hook   api.Function
	fuel   api.MutableGlobal
	depth  api.MutableGlobal
	state  []api.MutableGlobal // all that the guest's code can change besides its memory

	host guest.Host // whom the guest speaks to while it runs
	ctx  callContext
	args [2]uint64
	run  run
	turn chan struct{} // see gate
	used bool          // it has run since it was made or reset
	deep bool          // its stack may have grown large
}

// snapshot is a guest that has booted, for others to begin as.
type snapshot struct {
	image   *image
	globals []uint64 // values of instance.state
}

// callContext is what imports get as their context: it leads them to the instance. It has
// no values of others, which wazero would ask it for at each call.
type callContext struct {
	context.Context
	in *instance
}

// Value implements context.Context.
func (c *callContext) Value(any) any { return nil }

// caller returns the instance that a host function was called by.
func caller(ctx context.Context) *instance { return ctx.(*callContext).in }

// mailbox is where frames go.
type mailbox struct{ ptr, size uint32 }

// newInstance makes an instance of the module in mem, which is its own from now on, also if
// there is an error. No code of the guest runs.
func (f *Filter) newInstance(mem *memory) (*instance, error) {
	in := &instance{filter: f, mem: mem, turn: make(chan struct{}, 1)}
	in.ctx.in = in
	err := in.instantiate()
	if err == nil {
		err = in.bind()
	}
	if err != nil {
		in.destroy()
		return nil, because{CauseLoad, err}
	}
	f.count.made.Add(1)
	return in, nil
}

// instantiate makes the module's instance.
func (in *instance) instantiate() (err error) {
	defer func() {
		if p := recover(); p != nil { // no memory, for example
			err = fmt.Errorf("instantiate: %v", p)
		}
	}()
	m := in.filter.module
	ctx := withMemory(context.Background(), in.mem)
	if in.mod, err = m.rt.wz.InstantiateModule(ctx, m.compiled, m.rt.config); err == nil {
		in.filter.count.live.Add(1)
	}
	return err
}

// bind finds what the host needs of the instance.
func (in *instance) bind() error {
	in.memory = in.mod.Memory()
	in.hook = in.mod.ExportedFunction(abi.ExportHook)
	find := func(name string) api.MutableGlobal {
		g, _ := in.mod.ExportedGlobal(name).(api.MutableGlobal)
		return g
	}
	in.fuel, in.depth = find(meter.FuelExport), find(meter.DepthExport)
	if in.fuel == nil || in.depth == nil {
		return errors.New("its code has no meter")
	}
	in.depth.Set(in.filter.depth())
	for _, g := range in.filter.module.globals {
		global := find(g.Export)
		if global == nil {
			return fmt.Errorf("its code does not show the global %s", g.Export)
		}
		in.state = append(in.state, global)
	}
	return nil
}

// clone makes an instance that is as the one of the snapshot was.
func (f *Filter) clone() (*instance, error) {
	mem, err := f.cloneMemory()
	if err != nil {
		return nil, because{CauseLoad, err}
	}
	in, err := f.newInstance(mem)
	if err != nil {
		return nil, err
	}
	pages := uint32(f.snapshot.image.size/pageSize) - in.memory.Size()/pageSize
	if _, ok := in.memory.Grow(pages); !ok {
		in.destroy()
		return nil, because{CauseLoad, fmt.Errorf("its memory cannot grow by %d pages", pages)}
	}
	if !mem.mapped() {
		if err := mem.reset(); err != nil {
			in.destroy()
			return nil, because{CauseLoad, err}
		}
	}
	in.restore()
	return in, nil
}

// cloneMemory returns the memory for a clone, mapped from the image if the system still has
// mappings for it.
func (f *Filter) cloneMemory() (*memory, error) {
	if im := f.snapshot.image; im.file.ok() && f.module.rt.takeMapping() {
		mem, err := newMapped(im, int(f.opts.Limits.Memory))
		if err == nil {
			return mem, nil
		}
		f.module.rt.mapped.Add(-1)
	}
	mem, err := newMemory(int(f.opts.Limits.Memory))
	if err != nil {
		return nil, err
	}
	mem.of = f.snapshot.image
	return mem, nil
}

// boot runs the start of the guest: what it has the binary do, then _initialize and
// mg1_init.
func (in *instance) boot(ctx context.Context, env *guest.Env, host guest.Host) (mailbox, error) {
	if err := in.fillMemory(); err != nil {
		return mailbox{}, err
	}
	result := [1]uint64{abi.Minor}
	in.begin(ctx, host, in.filter.bootBudget(), time.Now())
	err := in.enter(in.filter.module.start, nil)
	if err == nil {
		err = in.enter(abi.ExportInitialize, nil)
	}
	if err == nil {
		err = in.enter(abi.ExportInit, result[:])
	}
	in.filter.count.boot.Add(int64(in.end().spent))
	if err != nil {
		return mailbox{}, err
	}
	return in.mailbox(result[0], env.Hooks())
}

// fillMemory writes the data that the module has for its memory: what instantiating does,
// whose rules it keeps (Core Specification 2.0, Section 4.5.4).
func (in *instance) fillMemory() error {
	for _, d := range in.filter.module.data {
		if !in.memory.Write(d.Offset, d.Bytes) {
			return because{CauseLoad, fmt.Errorf("data for %#x to %#x: out of bounds memory access", d.Offset, uint64(d.Offset)+uint64(len(d.Bytes)))}
		}
	}
	return nil
}

// enter calls an export of the start, if there is one.
func (in *instance) enter(export string, stack []uint64) error {
	if export == "" {
		return nil
	}
	f := in.mod.ExportedFunction(export)
	if f == nil {
		return nil
	}
	return in.explain(f.CallWithStack(&in.ctx, stack))
}

// mailbox unpacks what mg1_init returned, having subscribed to hooks.
func (in *instance) mailbox(v uint64, hooks policy.Stages) (mailbox, error) {
	if int64(v) < 0 {
		return mailbox{}, because{CauseGuest, fmt.Errorf("%w, code %d", errRefuses, int64(v))}
	}
	m := mailbox{uint32(v >> 32), uint32(v)}
	if m.size < abi.MinMailbox || m.size > abi.MaxMailbox {
		return m, because{CauseGuest, fmt.Errorf("its mailbox has %d octets, want %d to %d", m.size, abi.MinMailbox, abi.MaxMailbox)}
	}
	if hooks.Has(policy.StageChunk) && m.size < abi.ChunkMailbox {
		return m, because{CauseGuest, fmt.Errorf("its mailbox has %d octets, want %d or more for hook chunk", m.size, abi.ChunkMailbox)}
	}
	if _, ok := in.memory.Read(m.ptr, m.size); !ok {
		return m, because{CauseGuest, fmt.Errorf("its mailbox at %#x is outside of its memory", m.ptr)}
	}
	return m, nil
}

// errRefuses: the guest found its configuration wanting, or itself.
var errRefuses = errors.New("it refuses to start")

// snapshot keeps what the guest is now.
func (in *instance) snapshot() (*snapshot, error) {
	octets, ok := in.memory.Read(0, in.memory.Size())
	if !ok {
		return nil, errors.New("its memory cannot be read")
	}
	s := &snapshot{image: newImage(octets)}
	for _, g := range in.state {
		s.globals = append(s.globals, g.Get())
	}
	return s, nil
}

// call calls mg1_hook. On an error the guest's state is unknown.
func (in *instance) call(ctx context.Context, s *session, hook abi.Hook, b budget, asked time.Time) (v abi.Verdict, cpu cpuTime, err error) {
	box, ok := in.memory.Read(s.filter.mailbox.ptr, s.filter.mailbox.size)
	if !ok {
		return 0, cpuTime{}, errors.New("its mailbox is gone") // memory never shrinks
	}
	in.args = [2]uint64{uint64(hook), uint64(s.host.Frame(box))}
	in.begin(ctx, s.host, b, asked)
	err = in.explain(in.hook.CallWithStack(&in.ctx, in.args[:]))
	return abi.Verdict(in.args[0]), in.end(), err
}

// reset makes the instance what it was when it was made. If that is not possible, throw it
// away.
func (in *instance) reset() error {
	if in.mem.grew() {
		return errGrew
	}
	if err := in.mem.reset(); err != nil {
		return err
	}
	in.restore()
	in.used = false
	if in.deep {
		// A stack grows with what the guest does, on Go's heap, and never shrinks.
		in.hook, in.deep = in.mod.ExportedFunction(abi.ExportHook), false
	}
	return nil
}

var errGrew = errors.New("its memory has grown")

// restore gives all globals the values of the snapshot.
func (in *instance) restore() {
	for i, v := range in.filter.snapshot.globals {
		in.state[i].Set(v)
	}
	in.depth.Set(in.filter.depth())
}

// depth is where the count of the stack begins: its end is built into the code.
func (f *Filter) depth() uint64 { return uint64(meter.MaxDepth - f.opts.Limits.Stack) }

// destroy frees all that the instance has.
func (in *instance) destroy() {
	if in.mod != nil {
		_ = in.mod.Close(context.Background()) // of memory alone; it has no error to speak of
		in.filter.count.live.Add(-1)
	}
	if in.mem.mapped() {
		in.filter.module.rt.mapped.Add(-1)
	}
	in.mem.destroy()
	*in = instance{}
}

// environ is the environment of the guest.
func (f *Filter) environ() []string {
	return []string{
		// The guest's own collector should work harder before the host's limit ends it.
		"GOMEMLIMIT=" + strconv.FormatInt(f.opts.Limits.Memory*3/4, 10),
		"GOMAXPROCS=1",
		// A clone has the random state of its image; with this the SDK can seed it anew.
		"GODEBUG=randseednop=0",
	}
}

// panicked makes a panic of the host's side an error: it may not cost more than this filter.
func panicked(err *error) {
	if p := recover(); p != nil {
		*err = because{CauseTrap, fmt.Errorf("the host panicked: %v\n%s", p, debug.Stack())}
	}
}
