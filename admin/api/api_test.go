package api

import "testing"

func TestCovers(t *testing.T) {
	want := map[Role]string{ // what each may do
		RoleRead:    "read",
		RoleOperate: "read operate",
		RoleUpload:  "read upload",
		RoleAdmin:   "read operate upload admin",
		"":          "",
		"other":     "",
	}
	for have, may := range want {
		got := ""
		for _, r := range Roles() {
			if have.Covers(r) {
				if got != "" {
					got += " "
				}
				got += string(r)
			}
		}
		if got != may {
			t.Errorf("%q may %q, want %q", have, got, may)
		}
	}
}
