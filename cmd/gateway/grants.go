package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/guest-sdk/manifest"
	"github.com/penstock/penstock/internal/config"
	"github.com/penstock/penstock/policy/guest"
)

// grants.go: what filters ask for, and what the configuration lets them have.

// grantsOf is a grant in the words of package guest.
func grantsOf(g config.Grant) guest.Grants {
	to := guest.Grants{
		BodyRead: g.BodyRead == config.True, BodyEdit: g.BodyEdit == config.True, Discard: g.Discard == config.True,
		AcceptFinal: g.AcceptFinal == config.True, AuthData: g.AuthData == config.True, Secrets: g.Secret,
	}
	if g.Envelope.Given {
		to.Envelope = &guest.EnvelopeGrant{Relay: g.Envelope.Relay == config.True}
	}
	if g.KV.Given {
		to.KV = &guest.KVGrant{Quota: int64(g.KV.Quota), MaxPerHook: g.KV.MaxPerHook}
	}
	if g.DNS.Given {
		to.DNS = &guest.DNSGrant{Types: words(g.DNS.Types), MaxPerHook: g.DNS.MaxPerHook}
	}
	if g.HTTP.Given {
		to.HTTP = webGrant(g.HTTP)
	}
	if g.DSN.Given {
		to.DSN = &guest.DSNGrant{Count: g.DSN.Rate.Count, Per: g.DSN.Rate.Per}
	}
	if g.Route.Given {
		to.Route = &guest.RouteGrant{WeakerTLS: g.Route.WeakerTLS == config.True}
	}
	return to
}

func webGrant(g config.HTTPGrant) *guest.HTTPGrant {
	to := &guest.HTTPGrant{Methods: words(g.Methods), MaxResponse: int64(g.MaxResponse), MaxPerHook: g.MaxPerHook, Timeout: g.Timeout}
	for _, h := range g.Hosts {
		to.Hosts = append(to.Hosts, guest.HostPattern{Scheme: h.Scheme, Host: h.Host, Port: h.Port})
	}
	for _, n := range g.Private {
		to.Private = append(to.Private, n.Prefix)
	}
	return to
}

// words are the words of a list as plain text.
func words[T ~string](list []T) []string {
	var out []string
	for _, w := range list {
		out = append(out, string(w))
	}
	return out
}

// manifestOf is a module's manifest. One that cannot be read says nothing: the module is
// judged elsewhere.
func manifestOf(wasm []byte) manifest.Manifest {
	text, err := manifest.Find(wasm)
	if err != nil {
		return manifest.Manifest{}
	}
	m, err := manifest.Parse(text)
	if err != nil {
		return manifest.Manifest{}
	}
	return m
}

// granted are the names of what is granted.
func granted(g config.Grant) []string {
	to := grantsOf(g)
	return slices.DeleteFunc(abi.Capabilities(), func(c string) bool { return !to.Has(c) })
}

// howToGrant is what an operator writes for a capability.
var howToGrant = map[string]string{
	abi.CapEnvelope: "{envelope: {}}", abi.CapKV: "{kv: {}}", abi.CapDNS: "{dns: {}}", abi.CapDSN: "{dsn: {}}",
	abi.CapHTTP: "{http: {hosts: [HOST]}}", abi.CapSecret: "{secret: [NAME]}", abi.CapRoute: "{route: {}}",
}

// ungranted warns of what a filter asks for and does not have.
func ungranted(c *config.Config, key string, f config.Filter, asks []string) config.Problems {
	have := grantsOf(f.Grant)
	var problems config.Problems
	for _, want := range asks {
		switch {
		case !slices.Contains(abi.Capabilities(), want):
			problems = append(problems, c.Warning(key, fmt.Sprintf("filter %s asks for %s, which this gateway does not know", f.Name, printable(clip(want)))))
		case !have.Has(want):
			how := howToGrant[want]
			if how == "" {
				how = "{" + want + ": true}"
			}
			problems = append(problems, c.Warning(key, fmt.Sprintf("filter %s asks for %s: add grant: %s, or it gets EPERM", f.Name, want, how)))
		}
	}
	return problems
}

// clip bounds a word of a stranger's.
func clip(s string) string { return s[:min(len(s), 64)] }

// capabilityList is a list for people.
func capabilityList(list []string) string {
	if len(list) == 0 {
		return "nothing"
	}
	return printable(clipAll(list))
}

func clipAll(list []string) string {
	var out []string
	for _, s := range list[:min(len(list), 2*len(abi.Capabilities()))] {
		out = append(out, clip(s))
	}
	return strings.Join(out, " ")
}
