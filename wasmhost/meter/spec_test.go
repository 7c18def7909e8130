package meter_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"github.com/penstock/penstock/wasmhost/meter"
)

// spec_test.go runs the specification's own tests, which wazero carries as test data: each
// module as it came and rewritten, side by side, with little fuel at a time. What one does
// the other must do. They are read where they lie.

// script is a file of the tests, as wast2json writes it.
type script struct {
	dir, name string
	Commands  []command
}

type command struct {
	Type       string
	Line       int
	Name       string // of a module
	As         string // of register
	Filename   string
	ModuleType string `json:"module_type"`
	Action     struct {
		Type, Module, Field string
		Args                []value
	}
	Expected []value
}

type value struct {
	Type     string
	LaneType string `json:"lane_type"`
	Value    json.RawMessage
}

func scripts(t *testing.T) (list []script) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/tetratelabs/wazero").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	root := filepath.Join(strings.TrimSpace(string(out)), "internal/integration_test/spectest")
	files, _ := filepath.Glob(filepath.Join(root, "v[12]/testdata/*.json"))
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		version := filepath.Base(filepath.Dir(filepath.Dir(file)))
		s := script{dir: filepath.Dir(file), name: version + "/" + strings.TrimSuffix(filepath.Base(file), ".json")}
		if err := json.Unmarshal(b, &s); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		list = append(list, s)
	}
	if len(list) < 200 {
		t.Fatalf("%d scripts in %s, want more than 200", len(list), root)
	}
	return list
}

// skips reads the list of what is not run: "v2/data:15 reason".
func skips(t *testing.T) map[string]string {
	f, err := os.Open("testdata/spec-skip.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	list := make(map[string]string)
	for s := bufio.NewScanner(f); s.Scan(); {
		if what, why, ok := strings.Cut(s.Text(), " "); ok && !strings.HasPrefix(what, "#") {
			list[what] = why
		}
	}
	return list
}

// side is one of the two that are compared. Its modules are found by the names that a
// script gives them.
type side struct {
	*host
	rewrites  bool
	modules   map[string]api.Module
	current   api.Module
	instances []api.Module
}

func newSide(t *testing.T, rewrites bool, dir string) *side {
	s := &side{host: newHost(t), rewrites: rewrites, modules: make(map[string]api.Module)}
	s.tick = func(int64) int64 { return 200 }
	wasm, err := os.ReadFile(filepath.Join(dir, "../../testdata/spectest.wasm"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.instantiate(t.Context(), "spectest", "", wasm); err != nil {
		t.Fatalf("spectest: %v", err)
	}
	return s
}

// instantiate makes an instance; id is what the script calls it.
func (s *side) instantiate(ctx context.Context, as, id string, wasm []byte) error {
	r := &meter.Rewritten{Wasm: wasm}
	if s.rewrites {
		m, err := meter.Read(wasm)
		if err != nil {
			return err
		}
		if r, err = m.Rewrite(); err != nil {
			return err
		}
		if _, err := checkCycles(r.Wasm); err != nil {
			return fmt.Errorf("a cycle without a check: %w", err)
		}
	}
	mod, err := s.rt.InstantiateWithConfig(ctx, r.Wasm, wazero.NewModuleConfig().WithName(as).WithStartFunctions())
	if err != nil {
		return err
	}
	s.refill()
	for _, d := range r.Data {
		if !mod.Memory().Write(d.Offset, d.Bytes) {
			return errors.New("out of bounds memory access")
		}
	}
	if r.Start != "" {
		if _, err := mod.ExportedFunction(r.Start).Call(ctx); err != nil {
			return err
		}
	}
	s.current = mod
	s.modules[id] = mod
	s.instances = append(s.instances, mod)
	return nil
}

// refill makes all instances as they are between calls: one that trapped has no stack left.
func (s *side) refill() {
	for _, mod := range s.instances {
		if s.rewrites {
			setFuel(mod, 200)
		}
	}
}

// do runs an action.
func (s *side) do(ctx context.Context, c *command) ([]uint64, []api.ValueType, error) {
	mod := s.current
	if c.Action.Module != "" {
		mod = s.modules[c.Action.Module]
	}
	if mod == nil {
		return nil, nil, errors.New("no module")
	}
	if c.Action.Type == "get" {
		g := mod.ExportedGlobal(c.Action.Field)
		return []uint64{g.Get()}, []api.ValueType{g.Type()}, nil
	}
	var args []uint64
	for _, a := range c.Action.Args {
		args = append(args, a.bits()...)
	}
	s.refill()
	f := mod.ExportedFunction(c.Action.Field)
	got, err := f.Call(ctx, args...)
	types := f.Definition().ResultTypes()
	for i := range got {
		if len(types) == len(got) && (types[i] == api.ValueTypeI32 || types[i] == api.ValueTypeF32) {
			got[i] = uint64(uint32(got[i])) // the upper half is what was there before
		}
	}
	return got, types, err
}

// bits returns a value as wazero takes it.
func (v value) bits() []uint64 {
	var one string
	if json.Unmarshal(v.Value, &one) == nil {
		if one == "null" {
			return []uint64{0}
		}
		n, _ := strconv.ParseUint(one, 10, 64)
		if strings.HasSuffix(v.Type, "ref") {
			n++ // 0 is null
		}
		return []uint64{n}
	}
	var lanes []string
	_ = json.Unmarshal(v.Value, &lanes)
	var both [2]uint64
	width := 128 / len(lanes)
	for i, lane := range lanes {
		n, err := strconv.ParseUint(lane, 10, 64)
		if err != nil {
			m, _ := strconv.ParseInt(lane, 10, 64)
			n = uint64(m)
		}
		n &= math.MaxUint64 >> (64 - width)
		both[i*width/64] |= n << (i * width % 64)
	}
	return both[:]
}

// where is what wazero says of the place of an error; rewritten, the host finds it.
var where = regexp.MustCompile(`^(start function\[\d+\]( export\[".*"\])? failed|data\[\d+\]): `)

// reason is the kind of an error: the first line without the trace.
func reason(err error) string {
	if err == nil {
		return "none"
	}
	first, _, _ := strings.Cut(err.Error(), "\n")
	first = where.ReplaceAllString(first, "")
	if strings.Contains(first, errStack.Error()) || strings.Contains(first, "stack overflow") {
		return "stack"
	}
	return first
}

// same compares results. References are compared by whether they are null: that is all a
// guest can ask.
func same(a, b []uint64, types []api.ValueType) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if len(types) == len(a) && (types[i] == 0x70 || types[i] == api.ValueTypeExternref) {
			if (a[i] == 0) != (b[i] == 0) {
				return false
			}
		} else if a[i] != b[i] {
			return false
		}
	}
	return true
}

// tally counts what was run.
type tally struct{ modules, assertions, skipped, text int }

func TestSpec(t *testing.T) {
	skip := skips(t)
	var all tally
	for i, s := range scripts(t) {
		if raceEnabled && i%20 > 0 {
			continue // make test runs them all without the race detector
		}
		t.Run(s.name, func(t *testing.T) { s.run(t, skip, &all) })
	}
	if raceEnabled {
		return
	}
	for what := range skip {
		t.Errorf("testdata/spec-skip.txt: %s is not needed", what)
	}
	t.Logf("%d modules and %d assertions ran, plain and rewritten; %d skipped (testdata/spec-skip.txt), %d in text form",
		all.modules, all.assertions, all.skipped, all.text)
	if all.modules < 2000 || all.assertions < 60_000 {
		t.Errorf("%+v: want more", all)
	}
}

func (s *script) run(t *testing.T, skip map[string]string, all *tally) {
	plain, metered := newSide(t, false, s.dir), newSide(t, true, s.dir)
	broken := false // the module that the next actions are about was skipped
	for i := range s.Commands {
		c := &s.Commands[i]
		at := fmt.Sprintf("%s:%d", s.name, c.Line)
		if c.Type == "module" {
			broken = false
		}
		_, listed := skip[at]
		switch {
		case c.ModuleType == "text":
			all.text++
			continue
		case listed:
			delete(skip, at)
			broken = broken || c.Type == "module"
			all.skipped++
			continue
		case broken:
			all.skipped++
			continue
		case c.Type == "register":
			continue // see as
		}
		if c.Type == "module" {
			all.modules++
		} else {
			all.assertions++
		}
		if problem := s.step(t.Context(), plain, metered, i); problem != "" {
			t.Errorf("%s %s: %s", at, c.Type, problem)
		}
	}
	compareState(t, plain, metered)
}

// step runs a command on both sides and returns how they differ.
func (s *script) step(ctx context.Context, plain, metered *side, i int) string {
	c := &s.Commands[i]
	switch c.Type {
	case "module", "assert_invalid", "assert_malformed", "assert_unlinkable", "assert_uninstantiable":
		wasm, err := os.ReadFile(filepath.Join(s.dir, c.Filename))
		if err != nil {
			return err.Error()
		}
		as := s.as(i)
		want, got := plain.instantiate(ctx, as, c.Name, wasm), metered.instantiate(ctx, as, c.Name, wasm)
		switch {
		case c.Type == "module" && want != nil, (want == nil) != (got == nil):
			return fmt.Sprintf("rewritten: %v\nplain: %v", got, want)
		case c.Type == "assert_uninstantiable" && reason(got) != reason(want):
			return fmt.Sprintf("rewritten: %q\nplain: %q", reason(got), reason(want))
		}
		return ""
	}
	want, types, wantErr := plain.do(ctx, c)
	got, _, gotErr := metered.do(ctx, c)
	if returns := c.Type == "assert_return" || c.Type == "action"; returns != (wantErr == nil) {
		return fmt.Sprintf("plain: %v", wantErr)
	}
	if reason(gotErr) != reason(wantErr) || !same(want, got, types) {
		return fmt.Sprintf("rewritten: %x, %q\nplain: %x, %q", got, reason(gotErr), want, reason(wantErr))
	}
	return c.expects(want)
}

// expects compares integers with what the script wants, so that not both sides are wrong
// in one way, by a fault of the test for example.
func (c *command) expects(got []uint64) string {
	for i, v := range c.Expected {
		if len(got) == len(c.Expected) && (v.Type == "i32" || v.Type == "i64") && got[i] != v.bits()[0] {
			return fmt.Sprintf("got %d, the script wants %d", got[i], v.bits()[0])
		}
	}
	return ""
}

// as returns the name that a module is registered under later on.
func (s *script) as(i int) string {
	id := s.Commands[i].Name
	if s.Commands[i].Type != "module" {
		return ""
	}
	last := true // no other module has come
	for _, c := range s.Commands[i+1:] {
		if c.Type == "register" && (c.Name == id && id != "" || c.Name == "" && last) {
			return c.As
		}
		last = last && c.Type != "module"
	}
	return ""
}

// compareState compares what the instances have in the end.
func compareState(t *testing.T, plain, metered *side) {
	if len(plain.instances) != len(metered.instances) {
		t.Fatalf("%d instances, and rewritten %d", len(plain.instances), len(metered.instances))
	}
	for i, a := range plain.instances {
		b := metered.instances[i]
		if reflect.ValueOf(a.Memory()).IsNil() {
			continue
		}
		am, _ := a.Memory().Read(0, a.Memory().Size())
		if bm, _ := b.Memory().Read(0, b.Memory().Size()); !slices.Equal(am, bm) {
			t.Errorf("instance %d: memories differ (%d and %d octets)", i, len(am), len(bm))
		}
	}
}
