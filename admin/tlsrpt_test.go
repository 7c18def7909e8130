package admin_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/penstock/penstock/admin"
	"github.com/penstock/penstock/admin/api"
)

// fakeReports has reports n to 1, every second one about example.org.
type fakeReports struct {
	n   int
	err error
}

func (f *fakeReports) List(_ context.Context, after string, yield func(api.TLSReport) bool) error {
	for i := f.n; i > 0; i-- {
		id := fmt.Sprintf("%04d", i)
		if after != "" && id >= after {
			continue
		}
		r := api.TLSReport{ID: id, Domains: []string{"example.com"}, Policies: []api.TLSReportPolicy{{Type: "sts"}}}
		if i%2 == 0 {
			r.Domains = append(r.Domains, "Example.ORG")
		}
		if !yield(r) {
			return nil
		}
	}
	return f.err
}

func (f *fakeReports) Show(_ context.Context, id string) (api.TLSReport, error) {
	return api.TLSReport{ID: id, Policies: []api.TLSReportPolicy{{Type: "sts"}}}, f.err
}

// TestReports: who may, what makes no sense, and pages that fit together.
func TestReports(t *testing.T) {
	f := &fakeReports{n: 250}
	r := start(t, &fake{}, func(o *admin.Options) { o.Reports = f })
	for _, tt := range []struct {
		method, path string
		role         api.Role
		status       int
	}{
		{"GET", "/v1/tlsrpt", "", 401},
		{"GET", "/v1/tlsrpt", api.RoleRead, 200},
		{"POST", "/v1/tlsrpt", api.RoleAdmin, 405},
		{"GET", "/v1/tlsrpt?domain=example.org&limit=1000&after=0100", api.RoleRead, 200},
		{"GET", "/v1/tlsrpt?domian=example.org", api.RoleRead, 400},
		{"GET", "/v1/tlsrpt?domain=a&domain=b", api.RoleRead, 400},
		{"GET", "/v1/tlsrpt?limit=0", api.RoleRead, 400},
		{"GET", "/v1/tlsrpt?limit=1001", api.RoleRead, 400},
		{"GET", "/v1/tlsrpt/x", api.RoleRead, 200},
	} {
		if resp, body := r.ask(tt.method, tt.path, tt.role, strings.NewReader("")); resp.StatusCode != tt.status {
			t.Errorf("%s %s as %s: %d, want %d\n%s", tt.method, tt.path, tt.role, resp.StatusCode, tt.status, body)
		}
	}
	c := r.client(api.RoleRead)
	seen := map[string]bool{}
	for after := ""; ; {
		p, err := c.TLSReports(t.Context(), "example.org", after, 50)
		if err != nil {
			t.Fatal(err)
		}
		for _, rep := range p.Reports {
			if seen[rep.ID] || len(rep.Policies) > 0 {
				t.Errorf("%+v again, or with its policies", rep)
			}
			seen[rep.ID] = true
		}
		if after = p.Next; after == "" {
			break
		}
	}
	if len(seen) != 125 {
		t.Errorf("%d reports, want 125", len(seen))
	}
	if rep, err := c.TLSReport(t.Context(), "a/b"); err != nil || rep.ID != "a/b" || len(rep.Policies) != 1 {
		t.Errorf("%+v, %v", rep, err)
	}
	f.err = &api.Error{Code: api.CodeNotFound, Message: "gone"}
	if _, err := c.TLSReport(t.Context(), "x"); err == nil || !strings.Contains(err.Error(), "gone") {
		t.Errorf("got %v", err)
	}

	without := start(t, &fake{}, nil)
	for _, path := range []string{"/v1/tlsrpt", "/v1/tlsrpt/x"} {
		if resp, body := without.ask("GET", path, api.RoleRead, nil); resp.StatusCode != 409 || !strings.Contains(body, "handler: tlsrpt") {
			t.Errorf("%s: %d %s", path, resp.StatusCode, body)
		}
	}
}
