import { addThemeButton } from "./common.js";

addThemeButton(document.querySelector(".bar"));
