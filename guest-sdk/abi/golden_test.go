package abi

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// golden_test.go holds the contract to its promise: what was released stays as it was.

var update = flag.Bool("update", false, "add what is new to testdata/mg1.golden, and write docs/abi.md")

const goldenFile = "testdata/mg1.golden"

// contract writes every number, name and layout as one line each.
func contract() []string {
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	add("module %s", Module)
	for _, x := range []string{ExportMemory, ExportInitialize, ExportInit, ExportHook} {
		add("export %s", x)
	}
	add("reserved %s", ReservedPrefix)
	for _, f := range Imports() {
		add("import %s since %d", Signature(f), f.Since)
		for _, where := range whenNames(f.When) { // one by one: a hook that is added changes none of them
			add("import %s at %s", f.Name, where)
		}
	}
	for _, h := range HookTable() {
		add("hook %d %s", h.Hook, h.Name)
		for _, f := range h.Fields {
			add("hook %s has field %d", h.Name, f)
		}
	}
	for _, f := range FieldTable() {
		add("field %d %s kind %d", f.Field, f.Name, f.Kind)
	}
	for _, a := range ActionTable() {
		add("action %d %s", a.Action, a.Name)
	}
	for _, d := range DNSTypes() {
		add("dns type %d %s", d.Type, d.Name)
	}
	add("dns secure %d", DNSSecure)
	add("op dns %d", OpDNS)
	add("op http %d", OpHTTP)
	for _, c := range CapabilityTable() {
		add("capability %s", c.Name)
	}
	for _, e := range Errnos {
		add("errno %d %s", e.Errno, e.Name)
	}
	for _, c := range constants {
		add("constant %s %d", c.name, c.value)
	}
	for _, v := range verdicts {
		add("verdict %s %#016x", v.name, uint64(v.v))
	}
	return out
}

type constant struct {
	name  string
	value int64
}

var layout = []constant{
	{"FrameMagic", FrameMagic}, {"OffMagic", OffMagic}, {"OffHook", OffHook}, {"OffFields", OffFields},
	{"OffLength", OffLength}, {"OffFlags", OffFlags}, {"OffSession", OffSession},
	{"OffTransaction", OffTransaction}, {"OffTime", OffTime}, {"OffBudget", OffBudget},
	{"FrameHead", FrameHead}, {"FrameEntry", FrameEntry}, {"EntryKind", EntryKind},
	{"EntryOff", EntryOff}, {"EntryLen", EntryLen}, {"FlagPartial", FlagPartial},
	{"KindBytes", int64(KindBytes)}, {"KindInt", int64(KindInt)}, {"KindList", int64(KindList)}, {"KindIP", int64(KindIP)},
	{"LevelDebug", int64(LevelDebug)}, {"LevelInfo", int64(LevelInfo)}, {"LevelWarn", int64(LevelWarn)}, {"LevelError", int64(LevelError)},
	{"MetricCounter", int64(MetricCounter)},
	{"TLSPolicy", int64(TLSPolicy)}, {"TLSOff", int64(TLSOff)}, {"TLSOpportunistic", int64(TLSOpportunistic)}, {"TLSRequired", int64(TLSRequired)}, {"TLSVerify", int64(TLSVerify)},
	{"MatchLiteral", int64(MatchLiteral)}, {"MatchFold", int64(MatchFold)}, {"MatchRegexp", int64(MatchRegexp)},
	{"ScanBody", ScanBody}, {"ScanHeader", ScanHeader}, {"HitPattern", HitPattern}, {"HitLen", HitLen}, {"HitSize", HitSize},
	{"HashSHA256", int64(HashSHA256)}, {"HashSHA1", int64(HashSHA1)}, {"HashMD5", int64(HashMD5)},
	{"PartHead", PartHead}, {"PartOffFlags", PartOffFlags}, {"PartOffDepth", PartOffDepth}, {"PartOffParent", PartOffParent},
	{"PartOffHeader", PartOffHeader}, {"PartOffOff", PartOffOff}, {"PartOffSize", PartOffSize},
	{"PartBroken", int64(PartBroken)}, {"PartAmbiguous", int64(PartAmbiguous)}, {"PartDeep", int64(PartDeep)}, {"PartOpaque", int64(PartOpaque)},
	{"PartTruncated", int64(PartTruncated)}, {"PartLongHeader", int64(PartLongHeader)}, {"PartUnknownEncoding", int64(PartUnknownEncoding)},
	{"PartRaw", int64(PartRaw)}, {"PartDecoded", int64(PartDecoded)}, {"PartHeader", int64(PartHeader)},
}

// limits are part of the contract too: a guest that keeps to them must go on working.
var limits = []constant{
	{"MinMailbox", MinMailbox}, {"MaxMailbox", MaxMailbox}, {"ChunkMailbox", ChunkMailbox}, {"MaxChunk", MaxChunk}, {"MaxReply", MaxReply}, {"MaxReplyLines", MaxReplyLines},
	{"MaxLogLine", MaxLogLine}, {"MaxLogLines", MaxLogLines}, {"MaxSession", MaxSession}, {"MaxAddress", MaxAddress},
	{"MaxRandom", MaxRandom}, {"MaxHeaderRaw", MaxHeaderRaw}, {"MaxBodyRead", MaxBodyRead},
	{"MaxKVKey", MaxKVKey}, {"MaxKVValue", MaxKVValue}, {"MaxKV", MaxKV}, {"MaxDNS", MaxDNS}, {"MaxDNSName", MaxDNSName}, {"MaxHTTP", MaxHTTP},
	{"MaxHTTPRequest", MaxHTTPRequest}, {"MaxHTTPURL", MaxHTTPURL}, {"MaxHTTPFields", MaxHTTPFields}, {"MaxDSN", MaxDSN}, {"MaxDSNs", MaxDSNs},
	{"MaxScoreKey", MaxScoreKey}, {"MaxScore", MaxScore}, {"MaxMetrics", MaxMetrics}, {"MaxMetricName", MaxMetricName},
	{"MaxParts", MaxParts}, {"MaxPartDepth", MaxPartDepth},
	{"MaxRelay", MaxRelay}, {"MaxSource", MaxSource}, {"MaxMatchSets", MaxMatchSets}, {"MaxMatchText", MaxMatchText}, {"MaxPatterns", MaxPatterns}, {"MaxLiteral", MaxLiteral}, {"MaxRegexps", MaxRegexps},
}

var constants = slices.Concat(layout, limits)

var verdicts = []struct {
	name string
	v    Verdict
}{
	{"continue", NewVerdict(ActContinue, 0, 0, 0, 0, false)},
	{"reject 550 5.7.1 with text", NewVerdict(ActReject, 550, 5, 7, 1, true)},
	{"tempfail 451 4.999.998", NewVerdict(ActTempfail, 451, 4, 999, 998, false)},
	{"failed 7", Failed(7)},
}

// Signature writes an import as a declaration, as in "log(level i32, p i32, n i32) i32".
func Signature(f Import) string {
	var params []string
	for _, p := range f.Params {
		params = append(params, p.Name+" "+p.Type.String())
	}
	return fmt.Sprintf("%s(%s) %s", f.Name, strings.Join(params, ", "), f.Result)
}

// TestGolden fails when anything of the contract changed or vanished, with -update as
// well: only what is new may be added.
func TestGolden(t *testing.T) {
	now := contract()
	data, err := os.ReadFile(goldenFile)
	if err != nil && !(*update && os.IsNotExist(err)) {
		t.Fatal(err)
	}
	old := strings.FieldsFunc(string(data), func(r rune) bool { return r == '\n' })
	for _, line := range old {
		if !slices.Contains(now, line) {
			t.Errorf("the contract no longer has:\n\t%s\nmg1 may only grow; a change needs a new major", line)
		}
	}
	var added []string
	for _, line := range now {
		if !slices.Contains(old, line) {
			added = append(added, line)
		}
	}
	switch {
	case len(added) == 0 || t.Failed():
	case !*update:
		t.Errorf("new in the contract:\n\t%s\nkeep it with -update, and raise Minor if a release is out",
			strings.Join(added, "\n\t"))
	default:
		text := strings.Join(now, "\n") + "\n"
		if err := os.WriteFile(goldenFile, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestTablesAreWhole: numbers and names are unique, and what one table mentions another
// explains.
func TestTablesAreWhole(t *testing.T) {
	fields := map[Field]bool{}
	seen := map[string]bool{}
	unique := func(kind string, key any) {
		t.Helper()
		k := fmt.Sprint(kind, " ", key)
		if seen[k] {
			t.Errorf("%s is there twice", k)
		}
		seen[k] = true
	}
	for _, f := range FieldTable() {
		unique("field number", f.Field)
		unique("field name", f.Name)
		fields[f.Field] = true
		if f.Doc == "" || f.Kind < KindBytes || f.Kind > KindIP {
			t.Errorf("field %s: kind %d, doc %q", f.Name, f.Kind, f.Doc)
		}
	}
	var all Hooks
	for _, h := range HookTable() {
		unique("hook number", h.Hook)
		unique("hook name", h.Name)
		all |= 1 << h.Hook
		for _, f := range h.Fields {
			if !fields[f] {
				t.Errorf("hook %s has field %d, which no table explains", h.Name, f)
			}
		}
		if n := FrameHead + len(h.Fields)*FrameEntry; n > MinMailbox/2 {
			t.Errorf("hook %s: head and table take %d octets of the smallest mailbox, %d", h.Name, n, MinMailbox)
		}
	}
	if all != InSession {
		t.Errorf("hooks of the table: %#x, InSession: %#x", all, InSession)
	}
	for _, f := range Imports() {
		unique("import", f.Name)
		if f.Doc == "" || f.When == 0 || f.Since > Minor {
			t.Errorf("import %s: when %#x, since %d, doc %q", f.Name, f.When, f.Since, f.Doc)
		}
	}
	for i, c := range CapabilityTable() {
		unique("capability", c.Name)
		if c.Doc == "" || c.Name != Capabilities()[i] {
			t.Errorf("capability %s: doc %q, in the list %s", c.Name, c.Doc, Capabilities()[i])
		}
	}
	for _, e := range Errnos {
		unique("errno", int(e.Errno))
		if want := "mg1: " + e.Name + ": " + e.Doc; e.Errno.Error() != want {
			t.Errorf("errno %d: got %q, want %q", e.Errno, e.Errno.Error(), want)
		}
	}
	if got := Errno(-99).Error(); got != "mg1: unknown error" {
		t.Errorf("errno -99: got %q", got)
	}
}

func FuzzVerdictRoundTrip(f *testing.F) {
	f.Add(uint8(2), uint16(550), uint8(5), uint16(7), uint16(1), true)
	f.Add(uint8(255), uint16(65535), uint8(255), uint16(1023), uint16(65535), false)
	f.Fuzz(func(t *testing.T, action uint8, code uint16, class uint8, subject, detail uint16, text bool) {
		v := NewVerdict(Action(action), int(code), int(class), int(subject), int(detail), text)
		c, s, d := v.Enhanced()
		if v.Action() != Action(action) || v.Code() != int(code) || v.HasText() != text ||
			c != int(class&7) || s != int(subject&0x3ff) || d != int(detail&0x3ff) {
			t.Errorf("%d %d %d.%d.%d %v: got %d %d %d.%d.%d %v", action, code, class, subject, detail, text,
				v.Action(), v.Code(), c, s, d, v.HasText())
		}
		if v.Unknown() != 0 || v&ErrorBit != 0 {
			t.Errorf("%#x: unknown bits %#x", uint64(v), v.Unknown())
		}
		if e := Failed(uint32(code)); e&ErrorBit == 0 || uint32(e) != uint32(code) {
			t.Errorf("Failed(%d) = %#x", code, uint64(e))
		}
	})
}
