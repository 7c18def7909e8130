package tck

import (
	"fmt"
	"slices"

	"github.com/penstock/penstock/guest-sdk/abi"
)

// phases.go: at a hook at which an import may not be called it answers EPHASE, whatever
// its arguments, and does nothing.

// perPhase is how many imports are asked about at each hook of one scenario: a guest may
// log abi.MaxLogLines lines there.
const perPhase = 24

// phases are scenarios that call each import at each hook at which it may not be.
func phases() []scenario {
	var list []scenario
	imports := abi.Imports()
	for from := 0; from < len(imports); from += perPhase {
		sc := scenario{name: fmt.Sprintf("phases %d", len(list)+1)}
		for _, h := range allHooks() {
			for _, imp := range imports[from:min(from+perPhase, len(imports))] {
				if imp.When&(1<<h) == 0 {
					sc.calls = append(sc.calls, at(h, imp.Name, ephase, harmless(imp)...))
				}
			}
		}
		sc.after = wantMessage(messageText)
		list = append(list, sc)
	}
	return list
}

// ungranted are scenarios in which nothing is granted: imports that need a grant answer EPERM
// at each hook at which they may be called.
func ungranted() []scenario {
	var list []scenario
	for _, capability := range abi.Capabilities() {
		sc := scenario{name: "without " + capability, ungranted: true}
		for _, imp := range abi.Imports() {
			for _, h := range allHooks() {
				if slices.Contains(needs[capability], imp.Name) && imp.When&(1<<h) != 0 {
					sc.calls = append(sc.calls, at(h, imp.Name, eperm, harmless(imp)...))
				}
			}
		}
		list = append(list, sc)
	}
	return list
}

// needs are the imports that need a capability.
var needs = map[string][]string{
	abi.CapBodyRead: {"body_len", "body_read", "part_count", "part_info", "part_len", "part_read", "match", "hash"},
	abi.CapBodyEdit: {"body_splice", "body_new", "body_write", "body_commit"},
	abi.CapEnvelope: {"env_from", "rcpt_add", "rcpt_set", "rcpt_del"},
	abi.CapKV:       {"kv_get", "kv_set", "kv_incr", "kv_cas", "kv_del"},
	abi.CapDNS:      {"dns"},
	abi.CapHTTP:     {"http"},
	abi.CapDSN:      {"dsn"},
	abi.CapSecret:   {"secret"},
	abi.CapRoute:    {"out_relay", "out_source", "out_tls", "out_connect"},
}

// allHooks are those of a session in their order, after 0 for mg1_init.
func allHooks() []abi.Hook {
	hooks := []abi.Hook{0}
	for _, h := range abi.HookTable() {
		hooks = append(hooks, h.Hook)
	}
	return hooks
}

// harmless are arguments that make sense wherever any do.
func harmless(imp abi.Import) []any {
	var args []any
	for _, a := range argsOf(imp) {
		switch a.kind {
		case number:
			args = append(args, 0)
		case octets:
			args = append(args, "a")
		case buffer:
			args = append(args, Room(8))
		}
	}
	return args
}
