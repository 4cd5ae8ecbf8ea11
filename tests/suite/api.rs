//! The description of the API names every route.

#[test]
fn openapi_describes_the_routes() {
    let source = std::fs::read_to_string("src/server/api.rs").unwrap();
    let described = evenkeel::server::openapi();
    let routes: Vec<&str> = source
        .split(".route(\"")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
        .filter(|route| !route.ends_with("openapi.json"))
        .collect();
    assert!(routes.len() > 10);
    for route in routes {
        assert!(described["paths"][route].is_object(), "`{route}` is not described");
    }
}
